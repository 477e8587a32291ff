// TensorRT's side of a plugin, as far as headers alone allow: what TensorRT would hand to the plugin.
#pragma once
#include <NvInfer.h>
#include <dlfcn.h>

#include <cstdio>
#include <cstdlib>
#include <deque>
#include <memory>
#include <string>
#include <vector>

namespace fake {

using namespace nvinfer1;

// A dimension: a number, or (-1) one that is not known before a frame arrives.
struct Dimension final : IDimensionExpr {
  struct Impl final : apiv::VDimensionExpr {
    int64_t value;
    explicit Impl(int64_t v) : value(v) {}
    bool isConstant() const noexcept override { return value >= 0; }
    int64_t getConstantValue() const noexcept override { return value; }
    bool isSizeTensor() const noexcept override { return false; }
  } impl;
  explicit Dimension(int64_t value) : impl(value) { mImpl = &impl; }
  ~Dimension() noexcept override = default;
};

struct Expressions final : IExprBuilder {
  struct Impl final : apiv::VExprBuilder {
    std::deque<Dimension> made;
    IDimensionExpr const* constant(int64_t value) noexcept override { return &made.emplace_back(value); }
    IDimensionExpr const* operation(DimensionOperation operation, IDimensionExpr const& a,
                                    IDimensionExpr const& b) noexcept override {
      if (!a.isConstant() || !b.isConstant()) return constant(-1);
      int64_t const x = a.getConstantValue(), y = b.getConstantValue();
      switch (operation) {
        case DimensionOperation::kSUM: return constant(x + y);
        case DimensionOperation::kPROD: return constant(x * y);
        case DimensionOperation::kSUB: return constant(x - y);
        case DimensionOperation::kFLOOR_DIV: return constant(x / y);
        default: return nullptr;
      }
    }
    IDimensionExpr const* declareSizeTensor(int32_t, IDimensionExpr const&,
                                            IDimensionExpr const&) noexcept override {
      return nullptr;
    }
  } impl;
  Expressions() { mImpl = &impl; }
  ~Expressions() noexcept override = default;

  DimsExprs shape(std::vector<int64_t> const& sizes) {
    DimsExprs dims{};
    for (int64_t const size : sizes) dims.d[dims.nbDims++] = impl.constant(size);
    return dims;
  }
};

// Keeps everything of a severity of warning or worse.
struct Logger final : ILogger, ILoggerFinder {
  std::string text;
  void log(Severity severity, AsciiChar const* message) noexcept override {
    if (severity <= Severity::kWARNING) text += std::string(message) + "\n";
  }
  ILogger* findLogger() override { return this; }
  std::string take() { return std::exchange(text, {}); }
};

struct Recorder final : IErrorRecorder {
  std::vector<std::pair<ErrorCode, std::string>> errors;
  int32_t getNbErrors() const noexcept override { return int32_t(errors.size()); }
  ErrorCode getErrorCode(int32_t i) const noexcept override {
    return size_t(i) < errors.size() ? errors[size_t(i)].first : ErrorCode::kSUCCESS;
  }
  ErrorDesc getErrorDesc(int32_t i) const noexcept override {
    return size_t(i) < errors.size() ? errors[size_t(i)].second.c_str() : "";
  }
  bool hasOverflowed() const noexcept override { return false; }
  void clear() noexcept override { errors.clear(); }
  bool reportError(ErrorCode code, ErrorDesc description) noexcept override {
    errors.emplace_back(code, description);
    return true;
  }
  RefCount incRefCount() noexcept override { return 1; }
  RefCount decRefCount() noexcept override { return 1; }
};

struct Context final : IPluginResourceContext {
  Recorder recorder;
  IGpuAllocator* getGpuAllocator() const noexcept override { return nullptr; }
  IErrorRecorder* getErrorRecorder() const noexcept override { return const_cast<Recorder*>(&recorder); }
};

// The plugin library as TensorRT loads it.
struct Library {
  void* handle;
  IPluginCreatorInterface* const* creators = nullptr;
  int32_t count = 0;

  Library(char const* path, ILoggerFinder* finder) : handle(dlopen(path, RTLD_NOW | RTLD_LOCAL)) {
    if (handle == nullptr) {
      std::printf("dlopen: %s\n", dlerror());
      std::exit(2);
    }
    reinterpret_cast<void (*)(ILoggerFinder*)>(dlsym(handle, "setLoggerFinder"))(finder);
    creators = reinterpret_cast<IPluginCreatorInterface* const* (*)(int32_t&)>(
        dlsym(handle, "getCreators"))(count);
  }
  ~Library() { dlclose(handle); }

  IPluginCreatorV3One& creator(int32_t i) const {
    return *static_cast<IPluginCreatorV3One*>(creators[i]);
  }
};

// The fields that the ONNX parser would make of a node's attributes. Values live as long as this.
class Fields {
 public:
  Fields& ints(char const* name, std::vector<int32_t> values) {
    return set(name, PluginFieldType::kINT32, values);
  }
  Fields& longs(char const* name, std::vector<int64_t> values) {
    return set(name, PluginFieldType::kINT64, values);
  }
  Fields& floats(char const* name, std::vector<float> values) {
    return set(name, PluginFieldType::kFLOAT32, values);
  }
  Fields& text(char const* name, std::string const& value) {  // the parser counts the closing zero
    return set(name, PluginFieldType::kCHAR,
               std::vector<char>(value.c_str(), value.c_str() + value.size() + 1));
  }
  Fields& drop(std::string const& name) {
    std::vector<Field> kept;
    for (Field& field : fields_) {
      if (field.name != name) kept.push_back(std::move(field));
    }
    fields_ = std::move(kept);
    return *this;
  }

  PluginFieldCollection const* collection() {
    view_.clear();
    for (Field const& field : fields_)
      view_.emplace_back(field.name.c_str(), field.data.data(), field.type, field.length);
    collection_ = {int32_t(view_.size()), view_.data()};
    return &collection_;
  }

 private:
  struct Field {
    std::string name;
    PluginFieldType type;
    std::vector<char> data;
    int32_t length;
  };

  template <typename Value>
  Fields& set(char const* name, PluginFieldType type, std::vector<Value> const& values) {
    drop(name);
    auto const* const bytes = reinterpret_cast<char const*>(values.data());
    fields_.push_back(
        {name, type, {bytes, bytes + values.size() * sizeof(Value)}, int32_t(values.size())});
    return *this;
  }

  std::vector<Field> fields_;
  std::vector<PluginField> view_;
  PluginFieldCollection collection_{};
};

// A plugin and its three capabilities.
struct Made {
  std::unique_ptr<IPluginV3> plugin;
  IPluginV3OneCore* core = nullptr;
  IPluginV3OneBuild* build = nullptr;
  IPluginV3OneRuntime* runtime = nullptr;

  explicit Made(IPluginV3* made) : plugin(made) {
    if (plugin == nullptr) return;
    core = static_cast<IPluginV3OneCore*>(plugin->getCapabilityInterface(PluginCapabilityType::kCORE));
    build =
        static_cast<IPluginV3OneBuild*>(plugin->getCapabilityInterface(PluginCapabilityType::kBUILD));
    runtime = static_cast<IPluginV3OneRuntime*>(
        plugin->getCapabilityInterface(PluginCapabilityType::kRUNTIME));
  }
};

inline PluginTensorDesc tensor(DataType type, std::vector<int64_t> const& sizes,
                               TensorFormat format = TensorFormat::kLINEAR) {
  PluginTensorDesc desc{};
  desc.type = type;
  desc.format = format;
  for (int64_t const size : sizes) desc.dims.d[desc.dims.nbDims++] = size;
  return desc;
}

}  // namespace fake
