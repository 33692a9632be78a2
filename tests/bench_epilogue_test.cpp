// q4-bench with epilogues and adapters, as a process on the CPU.
#include <doctest/doctest.h>

#include <nlohmann/json.hpp>

#include "sandbox.hpp"

namespace q4::test {
namespace {

TEST_CASE("q4-bench: what an epilogue gives is checked, and timed beside the matmul alone") {
  const Sandbox box;
  for (const char* parts : {"--epilogue silu_mul", "--epilogue gelu_tanh_mul+residual --lora 2,8",
                            "--epilogue relu2+residual", "--residual --lora 3,16"}) {
    CAPTURE(parts);
    const auto json =
        box.run(std::string("q4-bench --device cpu --untuned --shape 256x144 --group 64 --m 1,5 --seconds "
                            "0.02 --json ") +
                parts);
    CAPTURE(json.out);
    REQUIRE(json.status == 0);
    const auto said = nlohmann::json::parse(json.out);
    REQUIRE(said["points"].size() == 2);
    for (const auto& point : said["points"]) {
      CHECK(point["exact"] == true);
      CHECK(point["alone_us"] > 0);
    }
  }
  for (const char* wrong : {"silu_mul+", "swish", "residual+silu", "lora"}) {
    const auto refused = box.run(std::string("q4-bench --device cpu --shape 256x144 --m 1 --epilogue ") + wrong, true);
    CHECK(refused.status == 2);
    CHECK(refused.out.find("--epilogue") != std::string::npos);
  }
}

}  // namespace
}  // namespace q4::test
