"""An RTSP server on the port that is its argument; needs the system's GStreamer."""

from __future__ import annotations

import sys

import gi

gi.require_version("Gst", "1.0")
gi.require_version("GstRtspServer", "1.0")
from gi.repository import GLib, Gst, GstRtspServer  # noqa: E402

SCENE = (
    "videotestsrc is-live=true pattern=ball background-color=0xffff0000"
    " ! video/x-raw,format=I420,width=320,height=240,framerate=25/1"
)
STREAMS = {
    "/h264": "x264enc tune=zerolatency speed-preset=ultrafast key-int-max=25"
    " ! rtph264pay name=pay0",
    "/jpeg": "jpegenc ! rtpjpegpay name=pay0",
}

Gst.init(None)
server = GstRtspServer.RTSPServer.new()
server.set_address("127.0.0.1")
server.set_service(sys.argv[1])
for path, coder in STREAMS.items():
    factory = GstRtspServer.RTSPMediaFactory.new()
    factory.set_launch(f"( {SCENE} ! {coder} )")
    factory.set_shared(True)
    server.get_mount_points().add_factory(path, factory)
server.attach(None)
GLib.MainLoop().run()
