// The benchmark's result as a table and as JSON.
#include <algorithm>
#include <cmath>
#include <cstdio>

#include "bench.h"

namespace metal_edge::bench {
namespace {

template <typename... Values>
std::string formatted(const char* format, Values... values) {
  char text[512];
  std::snprintf(text, sizeof text, format, values...);
  return text;
}

std::string microseconds(double value) {
  return std::isnan(value) ? "-" : formatted("%.2f", value);
}

std::string number(double value) {
  return std::isfinite(value) ? formatted("%.9g", value) : "null";
}

std::string quoted(const std::string& text) {
  std::string out = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') out += '\\';
    if (static_cast<unsigned char>(c) >= 0x20) out += c;
  }
  return out + '"';
}

std::string timing(const char* name, const Timing& time) {
  return formatted("\"%s\": {\"cold_us\": %s, \"warm_us\": %s}", name, number(time.cold).c_str(),
                   number(time.warm).c_str());
}

std::string result_as_json(const Result& r) {
  const Case& c = r.from;
  std::string out = "{\"case\": " + quoted(c.name) + ", \"type\": " + quoted(type_name(r.type));
  out += ", \"kernel\": " + quoted(r.kernel);
  out += formatted(", \"heads\": %d, \"head_dim\": %d, \"queries\": %d, \"keys\": %d", c.heads,
                   c.head_dim, c.queries, c.keys);
  const auto allowed = std::count(c.allowed.begin(), c.allowed.end(), true);
  out += ", \"allowed\": " + std::to_string(allowed);
  out += ", \"error\": " + number(r.error) + ", \"bound\": " + number(r.bound) + ", ";
  return out + timing("ours", r.kernel_time) + ", " + timing("plain", r.plain_time) + ", " +
         timing("composition", r.composition_time) + "}";
}

}  // namespace

std::string as_json(const Report& report) {
  std::string out =
      "{\"device\": " + quoted(report.device) + ", \"timed\": " + (report.timed ? "true" : "false");
  out += formatted(", \"batch\": %d, \"composition\": ", report.batch) + quoted(report.composition);
  out += ", " + timing("nothing", report.nothing) + ",\n \"results\": [";
  for (const Result& result : report.results) {
    out += (&result == report.results.data() ? "\n  " : ",\n  ") + result_as_json(result);
  }
  return out + "\n]}\n";
}

std::string as_text(const Report& report) {
  std::string out = report.device + "; batch " + std::to_string(report.batch) +
                    "; composition: " + report.composition + "\n";
  if (report.timed) {
    out += "Microseconds, medians: after L2 was flushed / in a row. A kernel that does nothing: " +
           microseconds(report.nothing.cold) + " / " + microseconds(report.nothing.warm) + "\n";
  } else {
    out += "Results are checked; nothing is timed here.\n";
  }
  out += formatted("\n%-14s %-8s %-34s %10s %10s  %-15s %-15s %-15s\n", "case", "type", "kernel",
                   "error", "bound", "ours", "plain kernel", "composition");
  for (const Result& r : report.results) {
    const auto pair = [](const Timing& t) {
      return microseconds(t.cold) + " / " + microseconds(t.warm);
    };
    out += formatted("%-14s %-8s %-34s %10.3g %10.3g  %-15s %-15s %-15s\n", r.from.name.c_str(),
                     type_name(r.type), r.kernel.c_str(), r.error, r.bound,
                     pair(r.kernel_time).c_str(), pair(r.plain_time).c_str(),
                     pair(r.composition_time).c_str());
  }
  return out;
}

}  // namespace metal_edge::bench
