#include "fields.h"

#include <cstring>
#include <limits>

namespace metal_edge::plugin {
namespace {

using nvinfer1::PluginField;
using nvinfer1::PluginFieldCollection;
using nvinfer1::PluginFieldType;

constexpr int32_t kMostScalars = 1 << 16;  // no attribute but the mask is longer

bool wrong_type(PluginField const& field, char const* wanted, Text& why) noexcept {
  return why.set("%s has plugin field type %d; it must be %s", field.name, int32_t(field.type), wanted);
}

// The data of a field may lie at any address: it is copied, never read in place.
template <typename Value>
std::vector<Value> copied(PluginField const& field) {
  std::vector<Value> values(size_t(field.length));
  std::memcpy(values.data(), field.data, values.size() * sizeof(Value));
  return values;
}

// The parser gives ONNX's int64 as int32; other makers of networks may not.
bool read(PluginField const& field, std::vector<int32_t>& out, Text& why) {
  if (field.type == PluginFieldType::kINT32) {
    out = copied<int32_t>(field);
    return true;
  }
  if (field.type != PluginFieldType::kINT64) return wrong_type(field, "int32 or int64", why);
  out.clear();
  for (int64_t const value : copied<int64_t>(field)) {
    if (value < std::numeric_limits<int32_t>::min() || value > std::numeric_limits<int32_t>::max()) {
      return why.set("%s is %lld, beyond 32 bits", field.name, static_cast<long long>(value));
    }
    out.push_back(int32_t(value));
  }
  return true;
}

bool read(PluginField const& field, std::vector<float>& out, Text& why) {
  if (field.type != PluginFieldType::kFLOAT32) return wrong_type(field, "float32", why);
  out = copied<float>(field);
  return true;
}

// The parser counts the closing zero as a part of the text.
bool read(PluginField const& field, std::string& out, Text& why) {
  if (field.type != PluginFieldType::kCHAR) return wrong_type(field, "char", why);
  auto const* const text = static_cast<char const*>(field.data);
  size_t length = size_t(field.length);
  if (text[length - 1] == '\0') --length;
  out.assign(text, length);
  return true;
}

template <typename Value, typename Target>
bool read_one(PluginField const& field, Target& out, Text& why) {
  std::vector<Value> values;
  if (!read(field, values, why)) return false;
  if (values.size() != 1)
    return why.set("%s has %zu numbers; it must be one", field.name, values.size());
  out = values[0];
  return true;
}

// One attribute: its field, how it is read, and how it is written again where it is set.
struct Entry {
  char const* name;
  PluginFieldType type;
  enum Operators { kBoth, kAttention, kBlock } of;
  bool (*read)(PluginField const&, Attributes&, Text&);
  PluginField (*write)(Attributes const&, char const* name);  // length 0: not set
};

template <std::optional<float> Attributes::* Member>
Entry real(char const* name, Entry::Operators of) {
  return {name, PluginFieldType::kFLOAT32, of,
          [](PluginField const& field, Attributes& a, Text& why) {
            return read_one<float>(field, a.*Member, why);
          },
          [](Attributes const& a, char const* written) {
            auto const& value = a.*Member;
            return PluginField(written, value ? &*value : nullptr, PluginFieldType::kFLOAT32,
                               value ? 1 : 0);
          }};
}

template <int32_t Attributes::* Member>
Entry integer(char const* name) {
  return {name, PluginFieldType::kINT32, Entry::kBoth,
          [](PluginField const& field, Attributes& a, Text& why) {
            return read_one<int32_t>(field, a.*Member, why);
          },
          [](Attributes const& a, char const* written) {
            return PluginField(written, &(a.*Member), PluginFieldType::kINT32, a.*Member != 0 ? 1 : 0);
          }};
}

template <auto Member>
Entry list(char const* name, PluginFieldType type) {
  return {name, type, Entry::kBoth,
          [](PluginField const& field, Attributes& a, Text& why) { return read(field, a.*Member, why); },
          [](Attributes const& a, char const* written) {
            using Value = typename std::decay_t<decltype(a.*Member)>::value_type;
            auto const type_of =
                std::is_same_v<Value, float> ? PluginFieldType::kFLOAT32 : PluginFieldType::kINT32;
            return PluginField(written, (a.*Member).data(), type_of, int32_t((a.*Member).size()));
          }};
}

template <std::string Attributes::* Member>
Entry text(char const* name) {
  return {name, PluginFieldType::kCHAR, Entry::kBoth,
          [](PluginField const& field, Attributes& a, Text& why) { return read(field, a.*Member, why); },
          [](Attributes const& a, char const* written) {  // with its closing zero, as the parser does
            return PluginField(written, (a.*Member).c_str(), PluginFieldType::kCHAR,
                               int32_t((a.*Member).size()) + 1);
          }};
}

std::vector<Entry> const& entries() {
  static std::vector<Entry> const all = {
      integer<&Attributes::heads>("heads"),
      real<&Attributes::scale>("scale", Entry::kBoth),
      list<&Attributes::mask_shape>("mask_shape", PluginFieldType::kINT32),
      text<&Attributes::mask>("mask"),
      text<&Attributes::fill>("fill"),
      list<&Attributes::slopes>("slopes", PluginFieldType::kFLOAT32),
      integer<&Attributes::columns>("columns"),
      real<&Attributes::q_scale>("q_scale", Entry::kAttention),
      real<&Attributes::k_scale>("k_scale", Entry::kAttention),
      real<&Attributes::v_scale>("v_scale", Entry::kAttention),
      real<&Attributes::out_scale>("out_scale", Entry::kAttention),
      real<&Attributes::epsilon>("epsilon", Entry::kBlock),
  };
  return all;
}

bool belongs(Entry const& entry, bool block) noexcept {
  return entry.of == Entry::kBoth || (entry.of == Entry::kBlock) == block;
}

Entry const* find(char const* name, bool block) {
  for (Entry const& entry : entries()) {
    if (belongs(entry, block) && std::strcmp(entry.name, name) == 0) return &entry;
  }
  return nullptr;
}

}  // namespace

bool read_fields(PluginFieldCollection const* fields, bool block, Attributes& attributes, Text& why) {
  int32_t const count = fields == nullptr ? 0 : fields->nbFields;
  for (int32_t i = 0; i < count; ++i) {
    PluginField const& field = fields->fields[i];
    if (field.name == nullptr) return why.set("attribute %d has no name", i);
    Entry const* const entry = find(field.name, block);
    if (entry == nullptr) return why.set("attribute '%.64s' is not known", field.name);
    int32_t const most =
        entry->type == PluginFieldType::kCHAR ? std::numeric_limits<int32_t>::max() : kMostScalars;
    if (field.data == nullptr || field.length < 1 || field.length > most) {
      return why.set("attribute '%s' is empty or has no data (length %d)", entry->name, field.length);
    }
    if (!entry->read(field, attributes, why)) return false;
  }
  return true;
}

std::vector<PluginField> fields_of(Attributes const& attributes) {
  std::vector<PluginField> fields;
  for (Entry const& entry : entries()) {
    PluginField const field = entry.write(attributes, entry.name);
    if (field.length > 0) fields.push_back(field);
  }
  return fields;
}

PluginFieldCollection const& field_names(bool block) noexcept {
  static auto const collect = [](bool of_block) {
    std::vector<PluginField> names;
    for (Entry const& entry : entries()) {
      if (belongs(entry, of_block)) names.emplace_back(entry.name, nullptr, entry.type, 1);
    }
    return names;
  };
  static std::vector<PluginField> const names[2] = {collect(false), collect(true)};
  static PluginFieldCollection const collections[2] = {{int32_t(names[0].size()), names[0].data()},
                                                       {int32_t(names[1].size()), names[1].data()}};
  return collections[block ? 1 : 0];
}

}  // namespace metal_edge::plugin
