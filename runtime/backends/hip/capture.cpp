// Captures once, replays between events.
#include "runtime/backends/hip/capture.hpp"

#include "runtime/base/check.hpp"

namespace q4::hip {
namespace {

constexpr unsigned kNonBlocking = 1;
constexpr int kCaptureThreadLocal = 1;

class Captured final : public CapturedWork {
 public:
  Captured(std::shared_ptr<const Api> api, int ordinal) : api_(std::move(api)), ordinal_(ordinal) {}
  Captured(const Captured&) = delete;
  ~Captured() override {
    int before = 0;
    if (api_->process.left() || api_->device_current(&before) != 0 || api_->device_use(ordinal_) != 0) return;
    if (end_) api_->event_destroy(end_);
    if (begin_) api_->event_destroy(begin_);
    if (exec_) api_->graph_exec_destroy(exec_);
    if (graph_) api_->graph_destroy(graph_);
    if (stream_) api_->stream_destroy(stream_);
    api_->device_use(before);
  }

  void record(const std::function<void(void* stream)>& work) {
    const Current current(*api_, ordinal_);
    ok(api_->stream_create(&stream_, kNonBlocking), "hipStreamCreate");
    ok(api_->capture_begin(stream_, kCaptureThreadLocal), "hipStreamBeginCapture");
    try {
      work(stream_);
    } catch (...) {
      api_->capture_end(stream_, &graph_);
      throw;
    }
    ok(api_->capture_end(stream_, &graph_), "hipStreamEndCapture");
    ok(api_->graph_instantiate(&exec_, graph_, nullptr, nullptr, 0), "hipGraphInstantiate");
    ok(api_->event_create(&begin_), "hipEventCreate");
    ok(api_->event_create(&end_), "hipEventCreate");
  }

  double replay() override {
    const Current current(*api_, ordinal_);
    ok(api_->event_record(begin_, stream_), "hipEventRecord");
    ok(api_->graph_launch(exec_, stream_), "hipGraphLaunch");
    ok(api_->event_record(end_, stream_), "hipEventRecord");
    ok(api_->event_synchronize(end_), "hipEventSynchronize");
    float milliseconds = 0;
    ok(api_->event_elapsed(&milliseconds, begin_, end_), "hipEventElapsedTime");
    return milliseconds * 1e3;
  }

 private:
  void ok(Result result, const char* call) const { api_->check(result, call); }

  std::shared_ptr<const Api> api_;
  int ordinal_;
  StreamHandle stream_ = nullptr;
  Graph graph_ = nullptr;
  GraphExec exec_ = nullptr;
  EventHandle begin_ = nullptr, end_ = nullptr;
};

}  // namespace

std::unique_ptr<CapturedWork> capture(std::shared_ptr<const Api> api, int ordinal,
                                      const std::function<void(void* stream)>& work) {
  auto captured = std::make_unique<Captured>(std::move(api), ordinal);
  captured->record(work);
  return captured;
}

}  // namespace q4::hip
