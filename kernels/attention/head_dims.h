// The head dims that tensor-core kernels are compiled for. A quick build takes fewer:
// -D'METAL_EDGE_HEAD_DIMS(X)=X(32) X(48)'.
#pragma once

#ifndef METAL_EDGE_HEAD_DIMS
#define METAL_EDGE_HEAD_DIMS(X) X(16) X(32) X(48) X(64) X(80) X(96) X(112) X(128)
#endif
