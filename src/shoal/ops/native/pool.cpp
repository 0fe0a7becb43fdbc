#include "pool.h"

#include <algorithm>
#include <chrono>
#include <sched.h>

namespace shoal {

namespace {

// Measured on 2 cores: a wait inside a step is 5-20 us, less than a sleep and a wake-up cost; but a thread that spins
// for longer takes the core from the very thread it waits for when another process is busy.
constexpr int kSpins = 500;
constexpr auto kStayAwake = std::chrono::microseconds(300);  // of a helper between two steps of one answer

inline void pause() {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

template <class Done>
void spin_then_yield(Done done) {
    for (int i = 0; i < kSpins; i++) {
        if (done()) return;
        pause();
    }
    while (!done()) sched_yield();
}

}  // namespace

void Worker::barrier() {
    if (threads == 1) return;
    unsigned phase = pool.phase_.load(std::memory_order_acquire);
    if (pool.arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == threads) {
        pool.arrived_.store(0, std::memory_order_relaxed);
        pool.phase_.store(phase + 1, std::memory_order_release);
    } else {
        spin_then_yield([&] { return pool.phase_.load(std::memory_order_acquire) != phase; });
    }
}

Pool::Pool(int max_threads) {
    for (int i = 1; i < std::max(1, max_threads); i++) helpers_.emplace_back([this, i] { helper(i); });
}

Pool::~Pool() {
    {
        std::lock_guard lock(mutex_);
        stop_ = true;
        generation_.fetch_add(1);
    }
    wake_.notify_all();
    for (auto& thread : helpers_) thread.join();
}

void Pool::run(int threads, const std::function<void(Worker&)>& job) {
    std::lock_guard turn(running_);
    threads = std::clamp(threads, 1, max_threads());
    Worker self{*this, 0, threads};
    if (threads == 1) {
        job(self);
        return;
    }
    job_ = &job;
    threads_ = threads;
    unfinished_.store(int(helpers_.size()), std::memory_order_relaxed);
    bool asleep;
    {
        // Whoever sleeps does so under this lock with the old generation, so no wake-up can be lost.
        std::lock_guard lock(mutex_);
        generation_.fetch_add(1, std::memory_order_release);
        asleep = sleepers_ > 0;
    }
    if (asleep) wake_.notify_all();
    job(self);
    spin_then_yield([&] { return unfinished_.load(std::memory_order_acquire) == 0; });
}

void Pool::helper(int index) {
    unsigned seen = 0;
    for (;;) {
        auto changed = [&] { return generation_.load(std::memory_order_acquire) != seen; };
        for (int i = 0; i < kSpins && !changed(); i++) pause();
        auto until = std::chrono::steady_clock::now() + kStayAwake;
        while (!changed() && std::chrono::steady_clock::now() < until) sched_yield();
        if (!changed()) {
            std::unique_lock lock(mutex_);
            sleepers_++;
            wake_.wait(lock, changed);
            sleepers_--;
        }
        seen = generation_.load(std::memory_order_acquire);
        if (stop_) return;
        if (index < threads_) {
            Worker self{*this, index, threads_};
            (*job_)(self);
        }
        unfinished_.fetch_sub(1, std::memory_order_acq_rel);
    }
}

}  // namespace shoal
