#include "common/log.h"

#include <spdlog/cfg/helpers.h>
#include <spdlog/sinks/stdout_sinks.h>

#include <string>

namespace penstock {

void InitLogging(std::string_view role) {
  auto logger = spdlog::stderr_logger_mt(std::string(role));
  logger->set_pattern("%Y-%m-%dT%H:%M:%S.%eZ %l %n %v", spdlog::pattern_time_type::utc);
  logger->flush_on(spdlog::level::info);
  const char* level = std::getenv("PENSTOCK_LOG_LEVEL");
  logger->set_level(spdlog::level::from_str(level != nullptr ? level : "info"));
  spdlog::set_default_logger(std::move(logger));
}

void CheckFailed(const char* file, int line, const char* condition) {
  spdlog::critical("msg=\"CHECK failed\" condition=\"{}\" at={}:{}", condition, file, line);
  spdlog::shutdown();
  std::abort();
}

}  // namespace penstock
