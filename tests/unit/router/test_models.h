// The models that the router's tests read: the real one, which tools/test fetches, and small ones
// made here.
#pragma once

#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdlib>
#include <fstream>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "common/formats/gguf.h"
#include "router/tokenizer/tokenizer.h"
#include "tests/unit/common/formats/gguf_builder.h"

namespace penstock::router {

inline std::string ModelPath() {
  const char* folder = std::getenv("PENSTOCK_MODEL_DIR");
  const char* home = std::getenv("HOME");
  const std::string models =
      folder != nullptr ? folder
                        : std::string(home != nullptr ? home : "") + "/.cache/penstock/models";
  return models + "/SmolLM2-135M-Instruct.Q4_1.gguf";
}

// Null, with a test failure that says what to do, if the model isn't there.
inline std::shared_ptr<const GgufFile> OpenModel() {
  auto file = GgufFile::Open(ModelPath());
  if (!file.ok()) {
    ADD_FAILURE() << file.status()
                  << "\nThis test needs the model: run tools/test, which fetches it, "
                  << "or set PENSTOCK_MODEL_DIR.";
    return nullptr;
  }
  return *std::move(file);
}

// Writes the file, opens it and removes its name; the mapping keeps it.
inline absl::StatusOr<std::shared_ptr<const GgufFile>> OpenBuilt(const GgufBuilder& builder) {
  static int number = 0;
  const std::string path = testing::TempDir() + "router_test_" + std::to_string(getpid()) + "_" +
                           std::to_string(number++) + ".gguf";
  std::ofstream(path, std::ios::binary) << builder.Build();
  auto file = GgufFile::Open(path);
  unlink(path.c_str());
  return file;
}

// What GPT-2 writes for a byte, in UTF-8.
inline std::string ByteText(int byte) {
  const auto printable = [](int b) {
    return (b >= 0x21 && b <= 0x7e) || (b >= 0xa1 && b <= 0xac) || b >= 0xae;
  };
  int code_point = byte;
  if (!printable(byte)) {
    code_point = 0x100;
    for (int b = 0; b < byte; ++b) code_point += printable(b) ? 0 : 1;
  }
  if (code_point < 0x80) return std::string(1, static_cast<char>(code_point));
  return {static_cast<char>(0xc0 | code_point >> 6), static_cast<char>(0x80 | (code_point & 0x3f))};
}

// A vocabulary of all 256 bytes (ids 0 to 255), a few merges and added tokens:
// 256 "he", 257 "ll", 258 "hell", 259 "hello", 260 "Ġw", 261 "<|end|>" control (EOS), 262
// "<|start|>" control (BOS), 263 "<tool>" user-defined, 264 "<tool>>" user-defined.
struct TinyVocabulary {
  std::vector<std::string> tokens;
  std::vector<int32_t> types;
  std::vector<std::string> merges = {"h e", "l l", "he ll", "hell o", "\xC4\xA0 w"};

  TinyVocabulary() {
    for (int byte = 0; byte < 256; ++byte) Add(ByteText(byte), 1);
    for (const char* token : {"he", "ll", "hell", "hello", "\xC4\xA0w"}) Add(token, 1);
    Add("<|end|>", 3);
    Add("<|start|>", 3);
    Add("<tool>", 4);
    Add("<tool>>", 4);
  }
  void Add(const std::string& token, int32_t type) {
    tokens.push_back(token);
    types.push_back(type);
  }
  GgufBuilder Builder(std::string_view pre = "smollm") const {
    GgufBuilder builder;
    builder.Str("tokenizer.ggml.model", "gpt2")
        .Str("tokenizer.ggml.pre", pre)
        .Strings("tokenizer.ggml.tokens", tokens)
        .I32s("tokenizer.ggml.token_type", types)
        .Strings("tokenizer.ggml.merges", merges);
    return builder;
  }
};

inline std::unique_ptr<Tokenizer> MakeTinyTokenizer() {
  GgufBuilder builder = TinyVocabulary().Builder();
  builder.U32("tokenizer.ggml.eos_token_id", 261).U32("tokenizer.ggml.bos_token_id", 262);
  const auto file = OpenBuilt(builder);
  if (!file.ok()) {
    ADD_FAILURE() << file.status();
    return nullptr;
  }
  auto tokenizer = Tokenizer::FromGguf(**file);
  if (!tokenizer.ok()) {
    ADD_FAILURE() << tokenizer.status();
    return nullptr;
  }
  return *std::move(tokenizer);
}

}  // namespace penstock::router
