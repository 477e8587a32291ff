// Checks the attention kernels against float64, then times them against a composed attention.
#include <cerrno>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "composition.h"
#include "device.h"

namespace metal_edge::bench {
namespace {

constexpr int kMismatch = 1, kUsage = 64,
              kUnavailable = 69;  // exit codes, the last two of sysexits.h

constexpr char kHelp[] =
    "Checks the masked-attention kernels against float64 on the CPU, then times them on the GPU\n"
    "against a plain kernel and a composed attention. On a Jetson, fix the clocks first:\n"
    "sudo nvpmodel -m 0 && sudo jetson_clocks.\n\n"
    "Example: bench_masked_attention --case features --json bench.json\n\n"
    "  --case NAME     only this case; may be given again\n"
    "  --batch N       images, 1 to 64 (1)\n"
    "  --repeats N     timed launches, 1 to 100000 (200)\n"
    "  --check-only    no timing\n"
    "  --json FILE     the table as JSON too\n\n"
    "Exit code 0: all results are right. 1: one is not, or CUDA failed. 64: wrong arguments.\n"
    "69: no GPU.\n";

struct Options {
  std::vector<std::string> names;
  int32_t batch = 1, repeats = 200;
  bool check_only = false, help = false;
  std::string json;
};

int32_t whole(const std::string& option, const std::string& text, int32_t most) {
  char* end = nullptr;
  const long value = std::strtol(text.c_str(), &end, 10);
  if (text.empty() || *end != '\0' || value < 1 || value > most) {
    throw UsageError(option + " is '" + text + "'; it takes 1 to " + std::to_string(most));
  }
  return static_cast<int32_t>(value);
}

Options parse(int count, char** words) {
  Options options;
  for (int i = 1; i < count; ++i) {
    const std::string word = words[i];
    const auto value = [&]() -> std::string {
      if (i + 1 == count) throw UsageError(word + " needs a value");
      return words[++i];
    };
    if (word == "--case") {
      options.names.push_back(value());
    } else if (word == "--batch") {
      options.batch = whole(word, value(), 64);
    } else if (word == "--repeats") {
      options.repeats = whole(word, value(), 100000);
    } else if (word == "--json") {
      options.json = value();
    } else if (word == "--check-only") {
      options.check_only = true;
    } else if (word == "--help" || word == "-h") {
      options.help = true;
    } else {
      throw UsageError("unknown argument '" + word + "'; see --help");
    }
  }
  return options;
}

// A result that is wrong; the message has the numbers.
struct MismatchError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

template <typename T>
T* uploaded(Device& device, const std::vector<T>& values) {
  if (values.empty()) return nullptr;
  void* const memory = device.allocate(values.size() * sizeof(T));
  device.upload(memory, values.data(), values.size() * sizeof(T));
  return static_cast<T*>(memory);
}

// One case in one type on the device.
class Trial {
 public:
  Trial(Device& device, Composition& composition, const Case& from, Type type, int32_t batch)
      : device_(device),
        composition_(composition),
        data_(make_data(from, type, batch)),
        expected_(expect(data_)),
        half_(type == Type::kHalf) {
    unsigned char* const input = uploaded(device, data_.input);
    buffers_ = {input + data_.q,
                input + data_.k,
                input + data_.v,
                device.allocate(output_bytes(data_.problem)),
                uploaded(device, data_.mask),
                uploaded(device, data_.tiles),
                uploaded(device, data_.slopes)};
    if (half_) scores_ = device.allocate(scores_bytes(data_.problem));
    result_ = {from,   type,  plan(data_.problem).kernel, 0.0, 2 * expected_.plain_error, none(),
               none(), none()};
  }

  // Throws MismatchError.
  void check() {
    result_.error = checked("the kernel", 2 * expected_.plain_error, [this] { ours(); });
    if (!half_) return;
    checked("the plain kernel", 2 * expected_.plain_error, [this] { plain(); });
    checked("the composition", 2 * expected_.composed_error, [this] { composed(); });
  }

  void time(int32_t repeats) {
    std::vector<std::function<void()>> works = {[this] { ours(); }};
    if (half_) {
      works.push_back([this] { plain(); });
      works.push_back([this] { composed(); });
    }
    const std::vector<Timing> times = device_.time(works, repeats);
    result_.kernel_time = times[0];
    if (half_) {
      result_.plain_time = times[1];
      result_.composition_time = times[2];
    }
  }

  const Result& result() const { return result_; }

 private:
  static Timing none() { return {NAN, NAN}; }

  void ours() {
    device_.require(launch(data_.problem, buffers_, device_.stream()), result_.kernel);
  }
  void plain() {
    device_.require(launch_plain(data_.problem, buffers_, device_.stream()), "the plain kernel");
  }
  void composed() { composition_.enqueue(device_, data_.problem, buffers_, scores_); }

  double checked(const std::string& what, double bound, const std::function<void()>& work) {
    // NaN in every type of float, -1 in int8: what nobody wrote is found.
    std::vector<unsigned char> out(output_bytes(data_.problem), 0xff);
    device_.upload(buffers_.out, out.data(), out.size());
    work();
    device_.download(out.data(), buffers_.out, out.size());
    const double error = worst_error(data_.problem, out.data(), expected_);
    if (!(error <= bound)) {  // NaN is no small error
      throw MismatchError(what + " is wrong on " + result_.from.name + ", " +
                          type_name(result_.type) + ": it is off by " + std::to_string(error) +
                          ", allowed are " + std::to_string(bound));
    }
    return error;
  }

  Device& device_;
  Composition& composition_;
  Data data_;
  Expected expected_;
  bool half_;
  Buffers buffers_;
  void* scores_ = nullptr;
  Result result_;
};

Report measure(Device& device, const Options& options, const std::vector<Case>& picked) {
  const std::unique_ptr<Composition> composition = make_composition(device);
  Report report = {device.name(), composition->name(), device.timed() && !options.check_only,
                   options.batch, {NAN, NAN},          {}};
  if (report.timed) {
    const auto nothing = [&] {
      device.require(launch_nothing(device.stream()), "an empty kernel");
    };
    report.nothing = device.time({nothing}, options.repeats)[0];
  }
  for (const Case& each : picked) {
    for (const Type type : {Type::kHalf, Type::kInt8, Type::kFloat}) {
      char why[256];
      if (!supported(make_data(each, type, options.batch).problem, why, sizeof why)) {
        std::fprintf(stderr, "%s, %s: not supported: %s\n", each.name.c_str(), type_name(type),
                     why);
        continue;
      }
      Trial trial(device, *composition, each, type, options.batch);
      trial.check();
      if (report.timed) trial.time(options.repeats);
      report.results.push_back(trial.result());
    }
  }
  return report;
}

void save(const std::string& path, const std::string& text) {
  std::FILE* const file = std::fopen(path.c_str(), "w");
  const bool written = file != nullptr && std::fputs(text.c_str(), file) >= 0;
  if (file == nullptr || std::fclose(file) != 0 || !written) {
    throw std::runtime_error("cannot write " + path + ": " + std::strerror(errno));
  }
}

int run(int count, char** words) {
  const Options options = parse(count, words);
  if (options.help) {
    std::fputs(kHelp, stdout);
    return 0;
  }
  const std::vector<Case> picked = cases(options.names);
  const std::unique_ptr<Device> device = open_device();
  const Report report = measure(*device, options, picked);
  std::fputs(as_text(report).c_str(), stdout);
  if (!options.json.empty()) save(options.json, as_json(report));
  return 0;
}

}  // namespace
}  // namespace metal_edge::bench

int main(int count, char** words) {
  using namespace metal_edge::bench;
  try {
    return run(count, words);
  } catch (const UsageError& error) {
    std::fprintf(stderr, "bench_masked_attention: %s\n", error.what());
    return kUsage;
  } catch (const NoDeviceError& error) {
    std::fprintf(stderr, "bench_masked_attention: %s; run it on the Jetson\n", error.what());
    return kUnavailable;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "bench_masked_attention: %s\n", error.what());
    return kMismatch;
  }
}
