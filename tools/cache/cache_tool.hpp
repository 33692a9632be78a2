// What the commands of q4-cache share: their options, and the kernels of folders and packs as a list.
#pragma once

#include <cstdint>
#include <q4/warmup.hpp>
#include <string>
#include <vector>

#include "runtime/cache/kernel_cache.hpp"
#include "tools/cache/cross.hpp"
#include "tools/common/common.hpp"
#include "tools/common/shapes.hpp"
#include "tools/common/tool.hpp"

namespace q4::tools {

struct CacheToolOptions {
  std::string folder, target, out, file, key, public_key;
  std::vector<std::string> sources, tuning;
  std::string signing_key;  ///< a file
  ShapeOptions shapes;
  CrossOptions cross;
  WarmupOptions warmup;
  std::uint64_t max_bytes = 0;
};

// One a command; the result is the exit status.
int build_kernels(const Tool& tool, const CacheToolOptions& options);
int warm_up(const Tool& tool, const CacheToolOptions& options);
int pack_folder(const Tool& tool, const CacheToolOptions& options);
int merge_sources(const Tool& tool, const CacheToolOptions& options);
int export_entries(const Tool& tool, const CacheToolOptions& options);
int import_entries(const Tool& tool, const CacheToolOptions& options);
int make_keys(const Tool& tool, const CacheToolOptions& options);
int sign_file(const Tool& tool, const CacheToolOptions& options);
int verify(const Tool& tool, const CacheToolOptions& options);
int list(const Tool& tool, const CacheToolOptions& options);
int stat(const Tool& tool, const CacheToolOptions& options);
int prune_folder(const Tool& tool, const CacheToolOptions& options);
int explain(const Tool& tool, const CacheToolOptions& options);
int doctor(const Tool& tool, const CacheToolOptions& options);

/// One kernel of a folder or a pack, sound or with what is wrong.
struct Listed {
  std::string path, problem;
  std::uint64_t bytes = 0;
  cache::Entry entry;
};
/// In order of their files or keys. Throws kNotFound where there is no such folder.
std::vector<Listed> read_folder(const std::string& folder);
std::vector<Listed> read_pack(const cache::Pack& pack);

/// Made from other kernel headers than this program's.
bool stale(const cache::Entry& entry);
std::string kilobytes(std::size_t bytes);
/// --public-key: 64 hex digits or a file with them; else $Q4_PACK_PUBLIC_KEY.
std::string public_key(const CacheToolOptions& options);

}  // namespace q4::tools
