// What a step costs on a device, from what `penstock bench engine` measured on it.
//
//   step = decode(d) + kv_ns * (ids in the pages that the decodes read) + prefill_us * p
// for d rows of one token and p other tokens. decode() goes straight from one measured batch size
// to the next, less the KV reads at the lengths it was measured with, and on as between the last
// two. Attention of prompt tokens is in prefill_us, as measured at the prompt lengths of the file.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "common/status.h"

namespace penstock::simulate {

class DeviceModel {
 public:
  // Reads the report's JSON. `kv_ns` is used unless the report has two input lengths for a batch
  // size, which it is then fitted from.
  static absl::StatusOr<DeviceModel> Load(const std::string& path, double kv_ns);

  double StepSeconds(uint32_t num_decodes, uint64_t num_read, uint64_t num_prefill) const;

  uint32_t num_pages() const { return num_pages_; }
  uint32_t page_size() const { return page_size_; }
  uint32_t max_model_len() const { return max_model_len_; }
  double kv_ns() const { return kv_ns_; }
  double prefill_us() const { return prefill_us_; }
  const std::string& name() const { return name_; }

 private:
  std::string name_;
  uint32_t num_pages_ = 0, page_size_ = 0, max_model_len_ = 0;
  std::vector<std::pair<double, double>> decode_ms_;  // batch size, ms without KV reads; ascending
  double prefill_us_ = 0;                             // a token
  double prefill_ms_ = 0;                             // a step without decodes, besides
  double kv_ns_ = 0;                                  // an id read
};

}  // namespace penstock::simulate
