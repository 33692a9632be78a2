// Parses a command line, runs the command and turns errors into exit statuses.
#include "tools/common/tool.hpp"

#include <fmt/format.h>
#include <CLI/CLI.hpp>

#include <cerrno>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <iostream>
#include <new>
#include <q4/version.hpp>
#include <system_error>

#include "runtime/backends/traits.hpp"
#include "runtime/base/check.hpp"
#include "tools/common/common.hpp"

namespace q4::tools {

Tool::Tool(const std::string& name, const std::string& purpose, const std::string& examples)
    : app(std::make_unique<CLI::App>(purpose, name)), name_(name) {
  app->set_version_flag("--version", name + " " + version());
  app->footer("\nExamples:\n" + examples);
  app->get_formatter()->column_width(34);
}

Tool::~Tool() = default;

void Tool::add_device() {
  app->add_option("--device", device_name, "cpu, cuda:0, hip:1, ... (default: the best one, see q4-info)")
      ->type_name("D");
}

void Tool::add_json(const std::string& what) { app->add_flag("--json", json, what); }

bool flush_output(const std::string& tool, int error) {
  errno = 0;
  std::cout.flush();  // CLI11's --help and --version
  if (std::fflush(stdout) != 0 && error == 0) error = errno;
  if (error == 0 && std::cout && !std::ferror(stdout)) return true;
  if (error == 0) error = errno;
  if (error != EPIPE)
    fmt::print(stderr, "{}: error: the output could not be written{}\n", tool,
               error ? std::string(": ") + std::strerror(error) : "");
  return false;
}

namespace {

/// What a shell leaves of a variable that is not set: `--checkpoint "$MODEL"` must not mean "no checkpoint".
void refuse_empty(const CLI::App& app) {
  for (const CLI::Option* option : app.get_options())
    for (const std::string& value : option->results())
      check(!value.empty(), "{} is empty; give a value, or leave it out", option->get_name());
  for (const CLI::App* subcommand : app.get_subcommands()) refuse_empty(*subcommand);
}

/// CLI11's text, which does not say the name of a subcommand that it does not know.
std::string usage_error(const CLI::App& app, const CLI::ParseError& error) {
  const auto rest = app.remaining();
  const bool unknown = error.get_exit_code() == static_cast<int>(CLI::ExitCodes::RequiredError) && !rest.empty() &&
                       app.get_require_subcommand_min() > 0 && app.get_subcommands().empty();
  return unknown ? fmt::format("there is no subcommand \"{}\"", rest.front()) : error.what();
}

}  // namespace

int Tool::run(int argc, char** argv, const std::function<int()>& body) {
  int status = kDone, output_error = 0;
  const auto failed = [&](int ends, const char* text, const char* more = "") {
    fmt::print(stderr, "{}: error: {}\n{}", name_, without_controls(text), more);
    status = ends;
  };
  constexpr const char* kHelp = "Run with --help for more information.\n";
  try {
    app->parse(argc, argv);
    refuse_empty(*app);
    status = body();
  } catch (const CLI::Success& e) {  // --help and --version
    errno = 0;
    app->exit(e);
    output_error = std::cout ? 0 : errno;
  } catch (const CLI::ParseError& e) {
    failed(kUsage, usage_error(*app, e).c_str(), kHelp);
  } catch (const InputError& e) { failed(kUsage, e.what()); } catch (const Error& e) {
    const bool usage = e.code() == ErrorCode::kInvalidArgument || e.code() == ErrorCode::kNotFound;
    usage ? failed(kUsage, e.what(), kHelp) : failed(kFailed, e.what());
  } catch (const std::bad_alloc&) {
    failed(kFailed, "host memory is exhausted; use smaller shapes or fewer rows");
  } catch (const std::system_error& e) {  // what fmt::print throws
    output_error = std::ferror(stdout) ? e.code().value() : 0;
    if (output_error == 0) failed(kFailed, e.what());
  } catch (const std::exception& e) { failed(kFailed, e.what()); }
  return flush_output(name_, output_error) || status != kDone ? status : kFailed;
}

Device Tool::device(const Runtime& runtime) const {
  const Device device = device_name.empty() ? runtime.best_device() : Device::parse(device_name);
  runtime.info(device);  // throws where there is none
  if (device_name.empty() && traits_of(device).host_addressable)
    fmt::print(stderr, "{}: no GPU can be used (q4-info says why): this runs on the CPU\n", name_);
  return device;
}

CLI::Validator number_check(const char* what, bool zero_too) {
  return CLI::Validator(
      [what, zero_too](std::string& text) -> std::string {
        double value = 0;
        const bool ok = CLI::detail::lexical_cast(text, value) && std::isfinite(value) && value >= 0;
        if (ok && (zero_too || value > 0)) return "";
        return fmt::format("\"{}\" is no number of {} {}", text, what, zero_too ? "of at least 0" : "above 0");
      },
      "");
}

}  // namespace q4::tools
