// What the two transports to a running server share.
#pragma once

#include <string>

namespace penstock::bench {

struct ServerOptions {
  std::string address;  // host:port
  std::string model;    // empty: the one the server has
  std::string api_key;
  bool ignore_eos = true;
  double temperature = 0;
};

// What a server says of its model; what it doesn't is 0 or empty.
struct ServerModel {
  std::string name;
  std::string version;  // the server's
  int vocab_size = 0;
  int max_model_len = 0;
};

}  // namespace penstock::bench
