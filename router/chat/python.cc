#include "router/chat/python.h"

#include <cstdlib>
#include <filesystem>
#include <string>

#include "common/status.h"
#include "fmt/format.h"
#include "renderer_py.h"

#ifdef __SANITIZE_ADDRESS__
// The interpreter is never stopped, and the leak checker can't see into Python's own arenas: what
// Python allocated is not a leak. What is allocated elsewhere is still checked.
extern "C" __attribute__((visibility("default"))) const char* __lsan_default_suppressions() {
  return "leak:libpython3\nleak:libcrypto\n";
}
#endif

namespace penstock::router {
namespace {

namespace py = pybind11;

constexpr char kPython[] = "/usr/bin/python3";

// The folder whose lib/python3.x a bundle brings along, beside the program's own; empty where there
// is none.
std::string BundledHome() {
  std::error_code error;
  const std::filesystem::path program = std::filesystem::read_symlink("/proc/self/exe", error);
  const std::filesystem::path home = program.parent_path().parent_path();
  const std::string version = fmt::format("python{}.{}", PY_MAJOR_VERSION, PY_MINOR_VERSION);
  const bool bundled = !error && home != "/usr" &&
                       std::filesystem::exists(home / "lib" / version / "encodings", error);
  return bundled ? home.string() : "";
}

absl::Status InitInterpreter() {
  PyConfig config;
  PyConfig_InitIsolatedConfig(&config);
  // Where the standard library is looked for starts from the program's name, and would else be the
  // first python3 on PATH. Bytecode caches need no place on a server's disk.
  config.write_bytecode = 0;
  const std::string home = BundledHome();
  PyStatus status = PyConfig_SetBytesString(&config, &config.program_name, kPython);
  if (!PyStatus_Exception(status) && !home.empty()) {
    status = PyConfig_SetBytesString(&config, &config.home, home.c_str());
  }
  if (!PyStatus_Exception(status)) {
    status = PyConfig_SetBytesString(&config, &config.executable, kPython);
  }
  if (!PyStatus_Exception(status)) status = Py_InitializeFromConfig(&config);
  PyConfig_Clear(&config);
  if (PyStatus_Exception(status)) {
    return absl::FailedPreconditionError(
        fmt::format("chat templates need Python, which doesn't start from {}: {}: install "
                    "Debian's python3",
                    home.empty() ? kPython : home,
                    status.err_msg != nullptr ? status.err_msg : "no reason given"));
  }
  return absl::OkStatus();
}

absl::StatusOr<py::handle> Start() {
  if (Py_IsInitialized()) {
    return absl::FailedPreconditionError("another part of this process runs Python already");
  }
  RETURN_IF_ERROR(InitInterpreter());
  absl::StatusOr<py::handle> result = py::handle();
  try {
    auto module = py::reinterpret_steal<py::module_>(PyModule_New("penstock_renderer"));
    const py::dict names = module.attr("__dict__");
    py::exec(kRendererPy, names);
    result = module.release();
  } catch (const py::error_already_set& error) {
    result = absl::FailedPreconditionError(fmt::format(
        "chat templates need Debian's Jinja2 ({}): install python3-jinja2", error.what()));
  }
  // Whoever needs the GIL takes it. The thread state returned lives as long as the process.
  PyEval_SaveThread();
  return result;
}

}  // namespace

absl::StatusOr<py::handle> RendererModule() {
  static const absl::StatusOr<py::handle> module = Start();
  return module;
}

}  // namespace penstock::router
