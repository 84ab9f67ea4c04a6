// Symmetric work on blocks of rows: every unordered pair of blocks is a task that updates the results of both its
// blocks. Blocks meet in the rounds of a round-robin tournament, which fixes the order of every block's updates for any
// number of threads.
#pragma once

#include <atomic>
#include <thread>
#include <utility>
#include <vector>

#include "core/cpu/parallel.h"

namespace gatedops::cpu {

// The rounds of `teams` blocks by the circle method: in each round a block meets at most one other. If the number of
// blocks is odd, one of them has a bye in each round.
class Tournament {
 public:
  explicit Tournament(int64_t teams) : teams_(teams), seats_(teams + teams % 2) {}

  int64_t rounds() const {
    return teams_ < 2 ? 0 : seats_ - 1;
  }
  // Returns the matches of a round.
  int64_t matches() const {
    return seats_ / 2;
  }

  // Returns match k of a round. A bye is a block that meets itself.
  std::pair<int64_t, int64_t> match(int64_t round, int64_t k) const {
    const int64_t circle = seats_ - 1;
    if (k == 0) {
      return {round, teams_ == seats_ ? circle : round};
    }
    return {(round + k) % circle, (round + circle - k) % circle};
  }

 private:
  int64_t teams_, seats_;
};

// Calls meet(worker, a, b) for all 0 <= b <= a < blocks. Tasks are handed out in the order of rounds; round 0 is the
// diagonal. A task waits until both its blocks have finished their previous round, so it waits only for earlier tasks.
template <class Meet>
void run_tournament(int64_t blocks, const Meet& meet) {
  const Tournament games(blocks);
  std::vector<std::atomic<int64_t>> done(static_cast<size_t>(blocks));
  const auto wait_for = [&done](int64_t block, int64_t rounds) {
    while (done[block].load(std::memory_order_acquire) < rounds) {
      std::this_thread::yield();
    }
  };
  run_tasks(blocks + games.rounds() * games.matches(), [&](int64_t worker, int64_t t) {
    if (t < blocks) {
      meet(worker, t, t);
      done[t].store(1, std::memory_order_release);
      return;
    }
    const int64_t round = (t - blocks) / games.matches();
    const auto [a, b] = games.match(round, (t - blocks) % games.matches());
    wait_for(a, round + 1);
    wait_for(b, round + 1);
    if (a != b) {
      meet(worker, std::max(a, b), std::min(a, b));
    }
    done[a].store(round + 2, std::memory_order_release);
    done[b].store(round + 2, std::memory_order_release);
  });
}

}  // namespace gatedops::cpu
