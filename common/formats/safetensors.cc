#include "common/formats/safetensors.h"

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <optional>
#include <set>
#include <utility>

#include "common/formats/json_file.h"
#include "common/status.h"

namespace penstock {
namespace {

using nlohmann::json;

// As the format's own library: a longer header is an attack or an accident.
constexpr uint64_t kMaxHeaderBytes = 100'000'000;
constexpr std::string_view kAgain = "download it again";

struct Dtype {
  std::string_view name;
  uint64_t bits;
};

constexpr Dtype kDtypes[] = {
    {"BOOL", 8}, {"F4", 4},      {"F6_E2M3", 6}, {"F6_E3M2", 6}, {"U8", 8},
    {"I8", 8},   {"F8_E5M2", 8}, {"U16", 16},    {"F8_E4M3", 8}, {"F8_E8M0", 8},
    {"I16", 16}, {"F16", 16},    {"BF16", 16},   {"I32", 32},    {"U32", 32},
    {"F32", 32}, {"C64", 64},    {"F64", 64},    {"I64", 64},    {"U64", 64},
};

const Dtype* FindDtype(const std::string& name) {
  const auto* found = std::find_if(std::begin(kDtypes), std::end(kDtypes),
                                   [&](const Dtype& dtype) { return dtype.name == name; });
  return found == std::end(kDtypes) ? nullptr : found;
}

// Parses one file.
class Parser {
 public:
  Parser(const MappedFile& file, const std::string& path) : file_(file), path_(path) {}

  absl::StatusOr<std::vector<SafetensorsTensor>> Parse() {
    ASSIGN_OR_RETURN(const std::string_view header, Header());
    ASSIGN_OR_RETURN(const json entries, ParseJson(header, path_ + ": the header"));
    if (!entries.is_object()) return Corrupt("the header is not a JSON object");
    for (const auto& [name, entry] : entries.items()) {
      if (name == "__metadata__") continue;
      RETURN_IF_ERROR(ParseEntry(name, entry));
    }
    return Place();
  }

 private:
  absl::Status Corrupt(std::string_view problem) const {
    return InvalidArgument("{}: {}: {}", path_, problem, kAgain);
  }
  absl::Status BadTensor(std::string_view name, std::string_view problem) const {
    return InvalidArgument("{}: tensor {} {}: {}", path_, name, problem, kAgain);
  }

  absl::StatusOr<std::string_view> Header() {
    const std::string_view bytes(reinterpret_cast<const char*>(file_.data()), file_.size());
    if (bytes.starts_with("version https://git-lfs")) {
      return InvalidArgument(
          "{}: this is a Git LFS pointer, not the weights: fetch them with git lfs pull", path_);
    }
    uint64_t size = 0;
    if (bytes.size() < sizeof(size)) return Corrupt("the file is too short for a header");
    std::memcpy(&size, bytes.data(), sizeof(size));
    if (size > kMaxHeaderBytes) {
      return Corrupt(
          fmt::format("not a safetensors file, or damaged: it claims a header of {} "
                      "bytes; at most {} are allowed",
                      size, kMaxHeaderBytes));
    }
    if (size > bytes.size() - sizeof(size)) {
      return Corrupt(
          fmt::format("the header of {} bytes ends beyond the file of {}", size, bytes.size()));
    }
    data_ = file_.data() + sizeof(size) + size;
    data_size_ = bytes.size() - sizeof(size) - size;
    return bytes.substr(sizeof(size), size);
  }

  absl::Status ParseEntry(const std::string& name, const json& entry) {
    const JsonKeys keys(entry, fmt::format("{}: tensor {}", path_, name));
    SafetensorsTensor tensor;
    tensor.name = name;
    ASSIGN_OR_RETURN(const std::string dtype_name, keys.GetString("dtype"));
    const Dtype* dtype = FindDtype(dtype_name);
    if (dtype == nullptr) {
      return BadTensor(name, fmt::format("has the unknown dtype \"{}\"", dtype_name));
    }
    tensor.dtype = dtype->name;
    ASSIGN_OR_RETURN(tensor.shape, Numbers(keys, "shape"));
    uint64_t bits = dtype->bits;
    for (const uint64_t size : tensor.shape) {
      if (__builtin_mul_overflow(bits, size, &bits)) {
        return BadTensor(
            name, fmt::format("has the impossible shape [{}]", fmt::join(tensor.shape, ", ")));
      }
    }
    tensor.num_bytes = bits / 8;
    ASSIGN_OR_RETURN(const std::vector<uint64_t> offsets, Numbers(keys, "data_offsets"));
    if (offsets.size() != 2 || offsets[0] > offsets[1]) {
      return keys.WrongType("data_offsets", "a begin and an end");
    }
    if (offsets[1] > data_size_) {
      return BadTensor(name,
                       fmt::format("ends at byte {} of the data, but the file has only {}: it "
                                   "is cut short",
                                   offsets[1], data_size_));
    }
    if (bits % 8 != 0 || offsets[1] - offsets[0] != tensor.num_bytes) {
      return BadTensor(name, fmt::format("of {} [{}] needs {} bytes, but has {}", dtype->name,
                                         fmt::join(tensor.shape, ", "), tensor.num_bytes,
                                         offsets[1] - offsets[0]));
    }
    tensor.data = data_ + offsets[0];
    tensors_.push_back(std::move(tensor));
    return absl::OkStatus();
  }

  absl::StatusOr<std::vector<uint64_t>> Numbers(const JsonKeys& keys, std::string_view key) const {
    const json* list = keys.Find(key);
    if (list == nullptr) return keys.Missing(key);
    if (!list->is_array()) return keys.WrongType(key, "a list of numbers");
    std::vector<uint64_t> numbers;
    for (const json& number : *list) {
      if (!number.is_number_unsigned())
        return keys.WrongType(key, "a list of numbers of 0 or more");
      numbers.push_back(number.get<uint64_t>());
    }
    return numbers;
  }

  // The bytes must be the tensors', all of them, each of one tensor.
  absl::StatusOr<std::vector<SafetensorsTensor>> Place() {
    std::sort(tensors_.begin(), tensors_.end(), [](const auto& a, const auto& b) {
      return std::pair(a.data, a.num_bytes) < std::pair(b.data, b.num_bytes);
    });
    const std::byte* end = data_;
    for (const SafetensorsTensor& tensor : tensors_) {
      if (tensor.data != end) {
        return BadTensor(tensor.name, tensor.data < end
                                          ? "overlaps the bytes of another"
                                          : "begins behind bytes that belong to no tensor");
      }
      end = tensor.data + tensor.num_bytes;
    }
    if (end == data_ + data_size_) return std::move(tensors_);
    return Corrupt(fmt::format("{} bytes at the end belong to no tensor",
                               static_cast<uint64_t>(data_ + data_size_ - end)));
  }

  const MappedFile& file_;
  const std::string& path_;
  const std::byte* data_ = nullptr;
  uint64_t data_size_ = 0;
  std::vector<SafetensorsTensor> tensors_;
};

}  // namespace

absl::StatusOr<std::vector<SafetensorsTensor>> ParseSafetensors(const MappedFile& file,
                                                                const std::string& path) {
  return Parser(file, path).Parse();
}

absl::StatusOr<std::shared_ptr<const SafetensorsCheckpoint>> SafetensorsCheckpoint::Open(
    const std::string& dir) {
  const std::string index = dir + "/model.safetensors.index.json";
  std::shared_ptr<SafetensorsCheckpoint> checkpoint(new SafetensorsCheckpoint());
  checkpoint->dir_ = dir;
  std::error_code error;
  if (std::filesystem::exists(dir + "/model.safetensors", error)) {
    RETURN_IF_ERROR(checkpoint->OpenFile("model.safetensors"));
  } else if (std::filesystem::exists(index, error)) {
    RETURN_IF_ERROR(checkpoint->OpenShards(index));
  } else {
    return NotFound(
        "{}: neither model.safetensors nor model.safetensors.index.json is there: give the folder "
        "of a Hugging Face checkpoint in safetensors (other formats must be converted), or "
        "--load-format=dummy to run without weights",
        dir);
  }
  return std::shared_ptr<const SafetensorsCheckpoint>(std::move(checkpoint));
}

absl::Status SafetensorsCheckpoint::OpenFile(const std::string& name) {
  const std::string path = dir_ + "/" + name;
  ASSIGN_OR_RETURN(MappedFile file, MappedFile::Open(path, kAgain));
  ASSIGN_OR_RETURN(std::vector<SafetensorsTensor> tensors, ParseSafetensors(file, path));
  files_.push_back(std::move(file));
  std::move(tensors.begin(), tensors.end(), std::back_inserter(tensors_));
  return absl::OkStatus();
}

absl::StatusOr<SafetensorsCheckpoint::WeightMap> SafetensorsCheckpoint::ReadIndex(
    const std::string& index_path) const {
  ASSIGN_OR_RETURN(const json index, ReadJsonFile(index_path));
  const JsonKeys keys(index, index_path);
  const json* map = keys.Find("weight_map");
  if (map == nullptr) return keys.Missing("weight_map");
  if (!map->is_object()) return keys.WrongType("weight_map", "an object");
  WeightMap shards;
  for (const auto& [name, shard] : map->items()) {
    // Nothing outside the folder, whatever the index says.
    const bool plain = shard.is_string() && !shard.get_ref<const std::string&>().empty() &&
                       shard.get_ref<const std::string&>().find('/') == std::string::npos;
    if (!plain) {
      return InvalidArgument("{}: tensor {}: its shard is not the name of a file: {}", index_path,
                             name, kAgain);
    }
    shards.emplace(name, shard.get<std::string>());
  }
  return shards;
}

absl::Status SafetensorsCheckpoint::OpenShards(const std::string& index_path) {
  ASSIGN_OR_RETURN(const WeightMap shard_of, ReadIndex(index_path));
  std::set<std::string> shards;
  for (const auto& [tensor, shard] : shard_of) shards.insert(shard);
  size_t listed = 0;
  for (const std::string& shard : shards) {
    std::error_code error;
    if (!std::filesystem::exists(dir_ + "/" + shard, error)) {
      return NotFound("{}/{}: the index names this shard, but it is absent: download it", dir_,
                      shard);
    }
    const size_t before = tensors_.size();
    RETURN_IF_ERROR(OpenFile(shard));
    for (size_t i = before; i < tensors_.size(); ++i) {
      const auto found = shard_of.find(tensors_[i].name);
      if (found == shard_of.end() || found->second != shard) {
        return InvalidArgument("{}/{}: tensor {} is here, but not by the index: {}", dir_, shard,
                               tensors_[i].name, kAgain);
      }
      ++listed;
    }
  }
  if (listed == shard_of.size()) return absl::OkStatus();
  // Each tensor found is one of the index, in its own shard, once: so some of the index are absent.
  std::set<std::string_view> found;
  for (const SafetensorsTensor& tensor : tensors_) found.insert(tensor.name);
  for (const auto& [tensor, shard] : shard_of) {
    if (found.contains(tensor)) continue;
    return InvalidArgument("{}/{}: tensor {} should be here by the index, but is not: {}", dir_,
                           shard, tensor, kAgain);
  }
  return absl::OkStatus();
}

}  // namespace penstock
