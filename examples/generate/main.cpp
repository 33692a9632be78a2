// Generates text with a Llama whose linear layers are 4-bit GPTQ or AWQ matrices.
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>

#include "engine.hpp"
#include "tokenizer.hpp"

namespace {

constexpr const char* kUsage =
    "Generates text with a Hugging Face checkpoint of the Llama architecture whose linear layers are 4-bit GPTQ or "
    "AWQ.\n\n"
    "  example-generate MODEL_FOLDER --prompt TEXT [--chat] [--tokens N] [--device cpu|cuda:0] [--threads N] "
    "[--ids]\n\n"
    "  --prompt TEXT         what to continue\n"
    "  --prompt-ids 1,2,3    the same as token ids; tokenizer.json is then not read\n"
    "  --chat                the prompt is a user's turn of a chat, and the answer ends where the model ends it\n"
    "  --tokens N            produce at most N tokens (128)\n"
    "  --device NAME         cpu, cuda:0, ... (the best one)\n"
    "  --threads N           of the CPU (all)\n"
    "  --ids                 print the prompt's token ids and those produced, a line each, instead of text; do not "
    "stop\n"
    "                        at the end of the text\n"
    "  --NAME=VALUE is the same as --NAME VALUE.\n";

struct Options {
  std::string folder, prompt, prompt_ids, device;
  int tokens = 128, threads = 0;
  bool chat = false, ids = false;
};

int number(const std::string& text, int least, const std::string& what) {
  char* end = nullptr;
  const long value = std::strtol(text.c_str(), &end, 10);
  if (text.empty() || *end != 0 || value < least || value > 1 << 24)
    throw std::invalid_argument(what + " is \"" + text + "\", not a number from " + std::to_string(least) + " to 2^24");
  return static_cast<int>(value);
}

Options parse(int argc, char** argv) {
  Options options;
  for (int i = 1; i < argc; ++i) {
    const std::string argument = argv[i];
    const std::size_t equals = argument.rfind("--", 0) == 0 ? argument.find('=') : std::string::npos;
    const std::string name = argument.substr(0, equals);
    const auto value = [&]() -> std::string {
      if (equals != std::string::npos) return argument.substr(equals + 1);
      if (i + 1 >= argc) throw std::invalid_argument(name + " needs a value");
      return argv[++i];
    };
    if (name == "--prompt")
      options.prompt = value();
    else if (name == "--prompt-ids")
      options.prompt_ids = value();
    else if (name == "--tokens")
      options.tokens = number(value(), 1, name);
    else if (name == "--device")
      options.device = value();
    else if (name == "--threads")
      options.threads = number(value(), 1, name);
    else if (name == "--chat")
      options.chat = true;
    else if (name == "--ids")
      options.ids = true;
    else if (name.rfind("--", 0) != 0 && options.folder.empty())
      options.folder = name;
    else
      throw std::invalid_argument("unknown argument \"" + name + "\"");
  }
  if (options.folder.empty()) throw std::invalid_argument("no model folder");
  if (options.prompt.empty() == options.prompt_ids.empty())
    throw std::invalid_argument("one of --prompt and --prompt-ids is needed");
  return options;
}

double seconds() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

void run(const Options& options) {
  std::optional<generate::Tokenizer> tokenizer;
  std::vector<int> prompt;
  if (options.prompt_ids.empty() || !options.ids) tokenizer.emplace(options.folder);
  if (options.prompt_ids.empty()) {
    prompt = tokenizer->encode(options.chat ? tokenizer->chat(options.prompt) : options.prompt);
  } else {
    std::stringstream list(options.prompt_ids);
    for (std::string id; std::getline(list, id, ',');) prompt.push_back(number(id, 0, "a token of --prompt-ids"));
  }

  const int threads = options.threads ? options.threads : q4::Runtime().info({}).compute_units;
  generate::Threads pool(threads);
  q4::RuntimeOptions runtime_options;
  runtime_options.cpu_threads = threads;
  runtime_options.parallel_for = [&pool](int count, const std::function<void(int)>& task) { pool.run(count, task); };
  const q4::Runtime runtime(runtime_options);
  const q4::Device device = options.device.empty() ? runtime.best_device() : q4::Device::parse(options.device);

  const double start = seconds();
  const generate::Model model = generate::load_model(runtime, device, options.folder);
  const int length = static_cast<int>(prompt.size()) + options.tokens;
  if (length > model.config.max_positions)
    throw std::invalid_argument("prompt and --tokens are " + std::to_string(length) + " tokens, and the model takes " +
                                std::to_string(model.config.max_positions));
  for (const int id : prompt)
    if (id >= model.config.vocab)
      throw std::invalid_argument("token " + std::to_string(id) + " of the prompt is not below vocab_size " +
                                  std::to_string(model.config.vocab));
  const auto engine = device.kind == q4::BackendKind::kCpu ? cpu_engine(runtime, model, pool, length)
                                                           : gpu_engine(runtime, model, length);
  const double loaded = seconds();

  if (options.ids)
    for (std::size_t i = 0; i < prompt.size(); ++i) std::printf("%d%c", prompt[i], i + 1 < prompt.size() ? ',' : '\n');
  int produced = 0;
  double first = 0, last = 0;
  engine->generate(prompt, options.tokens, [&](int token) {
    last = seconds();
    if (produced++ == 0) first = last;
    for (const int stop : model.config.stop)
      if (token == stop && !options.ids) return false;
    if (options.ids)
      std::printf("%d%s", token, produced == options.tokens ? "" : ",");
    else
      std::fwrite(tokenizer->decode(token).data(), 1, tokenizer->decode(token).size(), stdout);
    std::fflush(stdout);
    return true;
  });
  std::printf("\n");
  const double speed = produced > 1 ? (produced - 1) / (last - first) : 0;
  std::fprintf(stderr,
               "%s: loaded in %.2f s; %zu tokens of prompt in %.3f s; %d tokens, %.1f tokens/s, %.1f GB/s of weights\n",
               device.str().c_str(), loaded - start, prompt.size(), first - loaded, produced, speed,
               speed * static_cast<double>(model.bytes_per_token()) * 1e-9);
}

}  // namespace

int main(int argc, char** argv) try {
  if (argc < 2 || std::strcmp(argv[1], "--help") == 0) {
    std::fputs(kUsage, stdout);
    return argc < 2 ? 2 : 0;
  }
  run(parse(argc, argv));
  return std::ferror(stdout) ? 1 : 0;
} catch (const std::invalid_argument& error) {
  std::fprintf(stderr, "%s\n\n%s", error.what(), kUsage);
  return 2;
} catch (const std::exception& error) {
  std::fprintf(stderr, "error: %s\n", error.what());
  return 1;
}
