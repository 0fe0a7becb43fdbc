// A small thread pool for steps of a few milliseconds: between the parts of a step the threads meet at barriers that
// spin briefly and then yield; between steps the helpers wait a moment in the same way and then sleep.
#pragma once

#include <atomic>
#include <condition_variable>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace shoal {

class Pool;

// What a thread of a running job knows of itself. `barrier()` must be called by all threads of the job.
struct Worker {
    Pool& pool;
    int index;    // 0 is the caller of run()
    int threads;  // in this job
    void barrier();
    // This thread's half-open part of `count` items, contiguous: [count*i/n, count*(i+1)/n).
    int begin(int count) const { return int((long long)count * index / threads); }
    int end(int count) const { return int((long long)count * (index + 1) / threads); }
};

class Pool {
public:
    explicit Pool(int max_threads);
    ~Pool();
    Pool(const Pool&) = delete;
    int max_threads() const { return int(helpers_.size()) + 1; }

    // Runs job(worker) on `threads` threads (clipped to 1 .. max_threads), the caller being the first, and returns
    // when all are done. The job must not throw. Calls from several threads take turns.
    void run(int threads, const std::function<void(Worker&)>& job);

private:
    friend struct Worker;
    void helper(int index);
    std::vector<std::thread> helpers_;
    std::mutex running_;  // one job at a time
    std::mutex mutex_;    // guards sleeping
    std::condition_variable wake_;
    int sleepers_ = 0;
    bool stop_ = false;
    const std::function<void(Worker&)>* job_ = nullptr;
    int threads_ = 1;
    alignas(64) std::atomic<unsigned> generation_{0};  // counts jobs; a helper that sees a new one looks whether it takes part
    alignas(64) std::atomic<int> unfinished_{0};       // helpers that have not yet left the job
    alignas(64) std::atomic<int> arrived_{0};
    alignas(64) std::atomic<unsigned> phase_{0};
};

}  // namespace shoal
