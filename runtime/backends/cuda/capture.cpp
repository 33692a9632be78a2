// Captures once, replays between events.
#include "runtime/backends/cuda/capture.hpp"

#include "runtime/base/check.hpp"

namespace q4::cuda {
namespace {

constexpr unsigned kNonBlocking = 1;
constexpr int kCaptureThreadLocal = 1;

class Captured final : public CapturedWork {
 public:
  Captured(std::shared_ptr<const Api> api, Context context) : api_(std::move(api)), context_(context) {}
  Captured(const Captured&) = delete;
  ~Captured() override {
    if (api_->process.left() || api_->context_push(context_) != 0) return;
    if (end_) api_->event_destroy(end_);
    if (begin_) api_->event_destroy(begin_);
    if (exec_) api_->graph_exec_destroy(exec_);
    if (graph_) api_->graph_destroy(graph_);
    if (stream_) api_->stream_destroy(stream_);
    Context ignored;
    api_->context_pop(&ignored);
  }

  void record(const std::function<void(void* stream)>& work) {
    const Current current(*api_, context_);
    ok(api_->stream_create(&stream_, kNonBlocking), "cuStreamCreate");
    ok(api_->capture_begin(stream_, kCaptureThreadLocal), "cuStreamBeginCapture");
    try {
      work(stream_);
    } catch (...) {
      api_->capture_end(stream_, &graph_);
      throw;
    }
    ok(api_->capture_end(stream_, &graph_), "cuStreamEndCapture");
    ok(api_->graph_instantiate(&exec_, graph_, 0), "cuGraphInstantiate");
    ok(api_->event_create(&begin_, 0), "cuEventCreate");
    ok(api_->event_create(&end_, 0), "cuEventCreate");
  }

  double replay() override {
    const Current current(*api_, context_);
    ok(api_->event_record(begin_, stream_), "cuEventRecord");
    ok(api_->graph_launch(exec_, stream_), "cuGraphLaunch");
    ok(api_->event_record(end_, stream_), "cuEventRecord");
    ok(api_->event_synchronize(end_), "cuEventSynchronize");
    float milliseconds = 0;
    ok(api_->event_elapsed(&milliseconds, begin_, end_), "cuEventElapsedTime");
    return milliseconds * 1e3;
  }

 private:
  void ok(Result result, const char* call) const { api_->check(result, call); }

  std::shared_ptr<const Api> api_;
  Context context_;
  StreamHandle stream_ = nullptr;
  Graph graph_ = nullptr;
  GraphExec exec_ = nullptr;
  EventHandle begin_ = nullptr, end_ = nullptr;
};

}  // namespace

std::unique_ptr<CapturedWork> capture(std::shared_ptr<const Api> api, Context context,
                                      const std::function<void(void* stream)>& work) {
  auto captured = std::make_unique<Captured>(std::move(api), context);
  captured->record(work);
  return captured;
}

}  // namespace q4::cuda
