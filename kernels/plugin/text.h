// Messages of a fixed size: reporting an error must not need memory.
#pragma once
#include <cstdarg>
#include <cstdint>
#include <cstdio>

namespace metal_edge::plugin {

struct Text {
  char data[512] = {};
  static constexpr int32_t kSize = 512;

  // As printf. Returns false, so that a check can end with `return why.set(...)`.
  __attribute__((format(printf, 2, 3))) bool set(char const* format, ...) noexcept {
    va_list arguments;
    va_start(arguments, format);
    std::vsnprintf(data, sizeof(data), format, arguments);
    va_end(arguments);
    return false;
  }
};

}  // namespace metal_edge::plugin
