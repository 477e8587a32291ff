// Walks through a plugin library as TensorRT would, with nothing of TensorRT but its headers.
//
//     plugin_walk libmetal_edge_plugin.so [--emulated]
#include <cstring>

#include "walk.h"
#include "walk_memory.h"

int main(int count, char** arguments) {
  if (count < 2) {
    std::printf("usage: %s PLUGIN.so [--emulated]\n", arguments[0]);
    return 2;
  }
  std::setvbuf(stdout, nullptr, _IOLBF, 0);  // a crash must not take what was found with it
  bool const emulated = count > 2 && std::strcmp(arguments[2], "--emulated") == 0;
  bool const computes = emulated || walk::gpu_here();
  fake::Logger logger;
  {
    fake::Library library(arguments[1], &logger);
    walk::World const world{library, logger, computes};
    std::pair<char const*, void (*)(walk::World const&)> const parts[] = {
        {"creators", walk::creators},
        {"build time", walk::build_time},
        {"serialisation", walk::serialisation},
        {"refusals", walk::refusals},
        {"run time", walk::run_time}};
    auto const run = [&](char const* name, void (*part)(walk::World const&)) {
      int const before = walk::failures;
      part(world);
      std::string const left = logger.take();
      if (!left.empty()) walk::fail(name, 0, "messages that nothing expected: " + left);
      std::printf("%s - %s\n", walk::failures == before ? "ok" : "FAILED", name);
    };
    for (auto const& [name, part] : parts) run(name, part);
    if (computes) {
      run("numbers", walk::numbers);
    } else {
      std::printf("skipped - numbers: there is no GPU, and the library is no emulation\n");
    }
  }
  std::printf("%d failures\n", walk::failures);
  return walk::failures == 0 ? 0 : 1;
}
