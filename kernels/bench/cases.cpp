// The attentions of this project's models, and one that other masks would make.
#include <algorithm>
#include <cstdlib>

#include "device.h"

namespace metal_edge::bench {
namespace {

// May the query of square i look at square j, on a grid of `columns`?
template <typename Rule>
std::vector<bool> by_distance(int32_t columns, Rule rule) {
  const int32_t tokens = columns * columns;
  std::vector<bool> allowed;
  for (int32_t i = 0; i < tokens; ++i) {
    for (int32_t j = 0; j < tokens; ++j) {
      const int32_t apart =
          std::max(std::abs(i / columns - j / columns), std::abs(i % columns - j % columns));
      allowed.push_back(rule(apart));
    }
  }
  return allowed;
}

std::vector<bool> off_diagonal(int32_t tokens) {
  std::vector<bool> allowed(static_cast<size_t>(tokens) * static_cast<size_t>(tokens), true);
  for (size_t i = 0; i < allowed.size(); i += static_cast<size_t>(tokens) + 1) allowed[i] = false;
  return allowed;
}

// 8 x 8 squares look at all squares but their own, and at all 8 rows but their own.
std::vector<bool> zeroleak() {
  std::vector<bool> allowed;
  for (int32_t i = 0; i < 64; ++i) {
    for (int32_t j = 0; j < 72; ++j) allowed.push_back(j < 64 ? j != i : j - 64 != i / 8);
  }
  return allowed;
}

std::vector<Case> all() {
  const auto beyond_1 = [](int32_t apart) { return apart > 1; };
  const auto within_4 = [](int32_t apart) { return apart <= 4; };
  return {
      {"metal-squares", 4, 32, 64, 64, 0, Fill::kZeroScore, off_diagonal(64)},
      {"metal-stripes", 4, 256, 8, 8, 0, Fill::kZeroScore, off_diagonal(8)},
      {"zeroleak", 4, 64, 64, 72, 0, Fill::kExclude, zeroleak()},
      {"features", 8, 32, 256, 256, 16, Fill::kExclude, by_distance(16, beyond_1)},
      {"features-fine", 4, 32, 1024, 1024, 32, Fill::kExclude, by_distance(32, beyond_1)},
      {"vit-small", 6, 64, 257, 257, 0, Fill::kExclude, std::vector<bool>(257 * 257, true)},
      {"window", 4, 64, 1024, 1024, 0, Fill::kExclude, by_distance(32, within_4)},
  };
}

}  // namespace

std::vector<Case> cases(const std::vector<std::string>& names) {
  const std::vector<Case> known = all();
  if (names.empty()) return known;
  std::vector<Case> found;
  for (const std::string& name : names) {
    const auto it =
        std::find_if(known.begin(), known.end(), [&](const Case& c) { return c.name == name; });
    if (it == known.end()) {
      std::string list;
      for (const Case& each : known) list += (list.empty() ? "" : ", ") + each.name;
      throw UsageError("no case is called " + name + "; there are " + list);
    }
    found.push_back(*it);
  }
  return found;
}

}  // namespace metal_edge::bench
