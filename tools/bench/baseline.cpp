// Reads the peers and keeps the best of each point.
#include "tools/bench/baseline.hpp"

#include "runtime/base/check.hpp"
#include "tools/common/csv.hpp"

namespace q4::tools {
namespace {
const std::vector<std::string> kColumns = {"peer", "k", "n", "group", "act_order", "m", "us"};
}

Baseline Baseline::read(const std::string& path) { return Baseline(Csv::read(path, kColumns)); }

Baseline Baseline::parse(const std::string& text, const std::string& name) {
  return Baseline(Csv(text, name, kColumns));
}

Baseline::Baseline(const Csv& csv) {
  for (std::size_t r = 0; r < csv.rows(); ++r) {
    Peers& peers = points_[{csv.whole(r, "k"), csv.whole(r, "n"), csv.whole(r, "group"), csv.whole(r, "act_order") != 0,
                            csv.whole(r, "m")}];
    const std::string peer = csv.text(r, "peer");
    const double us = csv.real(r, "us");
    if (peer == "cublas_fp16") {
      peers.dense_us = us;
    } else if (peer == "read_floor") {
      peers.floor_us = us;
    } else if (peers.best_us == 0 || us < peers.best_us) {
      peers.best = peer, peers.best_us = us;
    }
  }
}

Peers Baseline::at(const autotune::Problem& p, std::int64_t m) const {
  const auto found = points_.find({p.k, p.n, p.group, p.act_order, m});
  return found == points_.end() ? Peers() : found->second;
}

}  // namespace q4::tools
