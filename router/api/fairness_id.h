// Who a request is from, for those who share the engine fairly: the name that the Kubernetes
// Gateway API inference extension gives it (llm-d.ai/docs/api-reference/epp-http-headers).
#pragma once

namespace penstock::router {

// An HTTP header or gRPC metadata; goes before the body's `user`.
inline constexpr char kFairnessIdHeader[] = "x-gateway-inference-fairness-id";

}  // namespace penstock::router
