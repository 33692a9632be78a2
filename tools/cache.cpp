// q4-cache: builds, packs, checks and bounds compiled kernels, on a machine with or without a GPU.
#include <fmt/format.h>
#include <CLI/CLI.hpp>

#include "runtime/base/check.hpp"
#include "tools/cache/cache_tool.hpp"
#include "tools/cache/tuning_files.hpp"

namespace {

using namespace q4;
using namespace q4::tools;

constexpr const char* kExamples =
    "  q4-cache build --target sm_90a,sm_80 --model llama-3-8b --max-m 512   needs NVRTC and no GPU\n"
    "  q4-cache build --target gfx90a,gfx1100 --max-m 512                    needs hipRTC or clang 17, no GPU\n"
    "  q4-cache pack --out llama.q4pack --tuning h200.jsonl                  what a deployment ships\n"
    "  q4-cache verify llama.q4pack                                          0 sound, 1 not, 2 cannot be read\n"
    "  q4-cache warmup --model llama-3-8b --max-m 512                        on the GPU: finds and loads all of it\n"
    "  q4-cache explain 5f0c12ab                                             which field of the key differs, and from "
    "what\n"
    "  q4-cache doctor                                                       is the folder as it should be?\n"
    "  q4-cache merge --out h200.jsonl h200-*.jsonl                          unite the files of many tuners\n"
    "  q4-cache prune --max-bytes 500MB                                      the least recently used go\n"
    "\n"
    "The folder is --cache-dir, else $Q4_CACHE_DIR, else $XDG_CACHE_HOME/q4, else $HOME/.cache/q4. A program uses a\n"
    "pack through RuntimeOptions::packs, Q4_CACHE_PATH=FOLDER[:FOLDER], or from q4-kernels/ beside it.\n";

using Command = int (*)(const Tool&, const CacheToolOptions&);

/// What --out is called says what is wanted.
int merge(const Tool& tool, const CacheToolOptions& options) {
  if (options.out.ends_with(".q4pack")) return merge_sources(tool, options);
  return merge_tuning(options.out, options.sources, tool.json);
}
int diff(const Tool& tool, const CacheToolOptions& options) {
  return diff_tuning(options.sources.at(0), options.sources.at(1), tool.json);
}

/// The commands' options.
class Commands {
 public:
  Commands(Tool& tool, CacheToolOptions& options) : tool_(tool), options_(options) {
    auto* app = add("build", "compiles what plans of these shapes load, for GPUs that need not be here", build_kernels);
    add_target(app, "sm_90a,sm_80: their usual GPUs; sm_90a/114: that number of SMs")->required();
    add_shapes(app);
    add_tuning(app, "also what these tuning files chose");
    app = add("warmup", "finds or compiles them on a GPU of this machine, and loads them", warm_up);
    app->add_option("--device", tool.device_name,
                    "cuda:0 (default: the best GPU; cpu must be named, and has nothing to warm up)")
        ->type_name("D");
    add_shapes(app);
    app->add_option("--threads", options.warmup.threads, "kernels at a time (default: cores)")->type_name("N");
    app->add_option("--deadline", options.warmup.deadline_s, "begin none after these seconds")->type_name("S");
    app = add("pack", "writes the folder's kernels of this version to one file", pack_folder);
    add_out(app, "FILE.q4pack");
    add_target(app, "only these (default: all)");
    add_tuning(app, "tuning records to put into it");
    add_signing(app);
    app = add("merge", "packs, folders and tuning files as one pack; or tuning files as one, with their conflicts",
              merge);
    app->add_option("source", options.sources, "packs, folders, tuning files (.jsonl)")->type_name("FILE")->required();
    add_out(app, "FILE.q4pack|FILE.jsonl");
    add_signing(app);
    app->footer(
        "\nOf equal kernels the one made last is used. Of two tuning records of one key the completely measured one "
        "is\n"
        "used, else the one that is faster outside noise at more of the m, else the earlier file's.\n");
    app = add("diff", "compares two tuning files: 0 the same tactics, 1 not", diff);
    app->add_option("files", options.sources, "two tuning files")->type_name("FILE")->required()->expected(2);
    app = add("export", "writes a pack's or the folder's sound kernels as entry files", export_entries);
    app->add_option("source", options.file, "a pack or a folder (default: the user's folder)")->type_name("FILE");
    add_out(app, "DIR");
    add_target(app, "only these (default: all)");
    app = add("import", "puts the sound kernels of packs and folders into the folder", import_entries);
    app->add_option("source", options.sources, "packs or folders")->type_name("FILE")->required();
    add_public_key(app);
    app = add("keygen", "makes a pair of keys to sign packs with: NAME.secret and NAME.public", make_keys);
    add_out(app, "NAME");
    app = add("sign", "signs a pack", sign_file);
    app->add_option("file", options.file, "the pack")->type_name("FILE.q4pack")->required();
    add_signing(app)->required();
    app = add("verify", "reads everything: 0 all sound, 1 something is not, 2 cannot be read", verify);
    app->add_option("file", options.file, "a pack or a folder (default: the user's folder)")->type_name("FILE");
    add_public_key(app);
    add("ls", "lists the kernels of the folder", list);
    add("stat", "counts them by target", stat);
    app = add("prune", "removes the least recently used kernels", prune_folder);
    app->add_option_function<std::string>(
           "--max-bytes", [&](const std::string& text) { options.max_bytes = parse_bytes(text, "--max-bytes"); },
           "what may stay: 0, 1000000, 500MB, 2GB")
        ->type_name("N")
        ->required();
    app = add("explain", "says which field of a key differs from the nearest kernel that there is", explain);
    app->add_option("key", options.key, "8 to 64 hex digits, as an error, the log or ls print them")->required();
    app->add_option("--in", options.sources, "packs and folders to look in as well")->type_name("FILE");
    add_target(app, "where the key is of no kernel that is there: try these (default: all that are known)");
    add_shapes(app);
    add("doctor", "checks the folder, its file system and every layer: 0 well, 1 not", doctor);
  }
  Command chosen = nullptr;

 private:
  CLI::App* add(const char* name, const char* purpose, Command body) {
    CLI::App* app = tool_.app->add_subcommand(name, purpose);
    app->add_flag("--json", tool_.json, "print JSON");
    app->add_option("--cache-dir", options_.folder, "the folder (default: the user's)")->type_name("DIR");
    app->preparse_callback([this, body](std::size_t) { chosen = body; });
    return app;
  }
  CLI::Option* add_out(CLI::App* app, const char* what) {
    return app->add_option("--out", options_.out, "what to write")->type_name(what)->required();
  }
  CLI::Option* add_target(CLI::App* app, const char* what) {
    return app->add_option("--target", options_.target, what)->type_name("T[,T]");
  }
  void add_tuning(CLI::App* app, const char* what) {
    app->add_option("--tuning", options_.tuning, what)->type_name("FILE");
  }
  CLI::Option* add_signing(CLI::App* app) {
    return app->add_option("--sign", options_.signing_key, "sign with this secret key (q4-cache keygen)")
        ->type_name("NAME.secret");
  }
  void add_public_key(CLI::App* app) {
    app->add_option("--public-key", options_.public_key, "packs must be signed by it: hex digits, or a file with them")
        ->type_name("KEY");
  }
  void add_shapes(CLI::App* app) {
    options_.shapes.add_to(*app, "llama-3-8b");
    app->add_option("--max-m", options_.cross.max_m, "largest m that the plans accept")
        ->type_name("M")
        ->check(CLI::Range(1, 1 << 20))
        ->default_val(512);
    app->add_option_function<std::string>(
           "--activation", [this](const std::string& text) { options_.cross.activation = parse_activation(text); },
           "fp16 (default) or bf16")
        ->type_name("T");
    app->add_flag("--bias", options_.cross.bias, "matrices with a bias (a checkpoint says it itself)");
    app->add_flag("--in-place", options_.cross.in_place,
                  "matrices in their tensors' own memory, as the drop-in modules of the Python wheel load them");
  }

  Tool& tool_;
  CacheToolOptions& options_;
};

}  // namespace

// NOLINTNEXTLINE(bugprone-exception-escape): a default that its option refuses, a mistake in the text above
int main(int argc, char** argv) {
  Tool tool("q4-cache", "Builds, packs and checks the compiled kernels that q4 loads.", kExamples);
  CacheToolOptions options;
  Commands commands(tool, options);
  tool.app->require_subcommand(1);
  return tool.run(argc, argv, [&] {
    options.folder = cache::default_folder(options.folder);
    return commands.chosen(tool, options);
  });
}
