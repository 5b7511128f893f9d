#include "tools/bench/kernels/onednn_peer.h"

#include <omp.h>

#include <cstring>
#include <oneapi/dnnl/dnnl.hpp>
#include <vector>

namespace penstock::bench {
namespace {

using dnnl::memory;

dnnl::matmul::primitive_desc Describe(const dnnl::engine& engine, int64_t rows, int64_t cols,
                                      int64_t tokens) {
  using Tag = memory::format_tag;
  const memory::desc x({tokens, cols}, memory::data_type::bf16, Tag::ab);
  const memory::desc w({cols, rows}, memory::data_type::bf16, Tag::any);
  const memory::desc out({tokens, rows}, memory::data_type::f32, Tag::ab);
  return dnnl::matmul::primitive_desc(dnnl::matmul::desc(x, w, out), engine);
}

class Matmul : public OneDnnMatmul {
 public:
  Matmul(int64_t rows, int64_t cols, int64_t tokens, int copies)
      : engine_(dnnl::engine::kind::cpu, 0),
        stream_(engine_),
        description_(Describe(engine_, rows, cols, tokens)),
        primitive_(description_),
        x_(Ones(description_.src_desc())),
        out_(description_.dst_desc(), engine_) {
    for (int i = 0; i < copies; ++i) weights_.push_back(Ones(description_.weights_desc()));
  }

  void Multiply() override {
    primitive_.execute(
        stream_, {{DNNL_ARG_SRC, x_}, {DNNL_ARG_WEIGHTS, weights_[next_]}, {DNNL_ARG_DST, out_}});
    stream_.wait();
    next_ = (next_ + 1) % weights_.size();
  }

 private:
  memory Ones(const memory::desc& desc) {
    memory m(desc, engine_);
    std::memset(m.get_data_handle(), 0x3c, desc.get_size());
    return m;
  }

  dnnl::engine engine_;
  dnnl::stream stream_;
  dnnl::matmul::primitive_desc description_;
  dnnl::matmul primitive_;
  memory x_, out_;
  std::vector<memory> weights_;
  size_t next_ = 0;
};

}  // namespace

std::unique_ptr<OneDnnMatmul> MakeOneDnnMatmul(int64_t rows, int64_t cols, int64_t tokens,
                                               int copies, int threads) {
  omp_set_num_threads(threads);
  return std::make_unique<Matmul>(rows, cols, tokens, copies);
}

}  // namespace penstock::bench
