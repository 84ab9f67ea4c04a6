// Measures how fast the inner operations of an instruction set count.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <thread>
#include <vector>

#include "core/require.h"
#include "kernels.h"

namespace gatedops::cpu {
namespace {

// Repeats are short, so that some of them are not interrupted.
constexpr double kRepeatSeconds = 1e-3;
constexpr int kRepeats = 50;

double seconds_of(const RateLoop& loop, int64_t rounds) {
  const auto start = std::chrono::steady_clock::now();
  loop.run(rounds);
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

// Returns how many rounds one repeat runs.
int64_t rounds_of_a_repeat(const RateLoop& loop) {
  for (int64_t rounds = 1;; rounds *= 2) {
    const double once = seconds_of(loop, rounds), again = seconds_of(loop, rounds);
    if (std::min(once, again) >= kRepeatSeconds / 2) {
      return 2 * rounds;
    }
  }
}

// Threads that run the same repeats side by side.
class Team {
 public:
  Team(const RateLoop& loop, int64_t threads)
      : loop_(loop), rounds_(rounds_of_a_repeat(loop)), threads_(threads), seconds_(threads * kRepeats) {}

  // Returns the bit-pairs per second of all threads together in their best repeat.
  double best_rate() {
    run();
    double best = 0;
    for (int repeat = 0; repeat < kRepeats; ++repeat) {
      double rate = 0;
      for (int64_t t = 0; t < threads_; ++t) {
        rate += static_cast<double>(rounds_ * loop_.bit_pairs) / seconds_[t * kRepeats + repeat];
      }
      best = std::max(best, rate);
    }
    return best;
  }

 private:
  void run() {
    std::vector<std::thread> team;
    try {
      for (int64_t t = 1; t < threads_; ++t) {
        team.emplace_back([this, t] { work(t); });
      }
    } catch (...) {  // the system has no more threads: those that run must not wait for the missing ones
      stopped_ = true;
      join(team);
      throw;
    }
    work(0);
    join(team);
  }

  static void join(std::vector<std::thread>& team) {
    for (std::thread& t : team) {
      t.join();
    }
  }

  void work(int64_t t) {
    for (int repeat = 0; repeat < kRepeats; ++repeat) {
      ++arrived_;
      while (arrived_ < (repeat + 1) * threads_) {  // waits until all are ready for this repeat
        if (stopped_) {
          return;
        }
        std::this_thread::yield();
      }
      seconds_[t * kRepeats + repeat] = seconds_of(loop_, rounds_);
    }
  }

  const RateLoop& loop_;
  const int64_t rounds_, threads_;
  // This holds the time of each repeat of each thread.
  std::vector<double> seconds_;
  std::atomic<int64_t> arrived_{0};
  std::atomic<bool> stopped_{false};
};

}  // namespace

double bit_pairs_per_second(const std::string& isa, int64_t threads) {
  const RateLoop& loop = kernels_of<RateLoop>(available_isa(isa));
  require(threads >= 1, [&] { return "threads: got " + std::to_string(threads) + ", needs at least 1"; });
  // More threads than cores take turns, and a repeat fits into one turn: they would seem to count side by side.
  const int64_t cores = std::thread::hardware_concurrency();  // 0 if the system does not say
  return Team(loop, cores > 0 ? std::min(threads, cores) : threads).best_rate();
}

}  // namespace gatedops::cpu
