// The threads of one CUDA block are fibers of one CPU thread. They run from one wait to the next, in a random order
// that is drawn again in every sweep, and from time to time a warp sleeps. Code that needs a certain order fails on
// some run.
#pragma once

#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <functional>
#include <memory>
#include <numeric>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

namespace emulation {

class Fibers {
 public:
  Fibers(int count, unsigned seed) : random_(seed), order_(count), asleep_((count + 31) / 32), fibers_(count) {
    std::iota(order_.begin(), order_.end(), 0);
  }

  // Runs body(thread) in every fiber. Throws what the first failing fiber threw, or an error for a deadlock.
  void run(const std::function<void(int)>& body) {
    active_ = this;
    body_ = &body;
    for (size_t i = 0; i < fibers_.size(); ++i) {
      start(static_cast<int>(i));
    }
    for (int idle = 0; running_ > 0; ++idle) {
      if (progress_) {
        idle = 0;
      }
      progress_ = false;
      if (idle > 5000) {
        throw std::runtime_error("deadlock: every thread waits");
      }
      std::shuffle(order_.begin(), order_.end(), random_);
      put_a_warp_to_sleep();
      for (int i : order_) {
        current_ = i;
        if (!fibers_[i]->done && asleep_[i / 32] == 0 && fibers_[i]->may_go_on()) {
          go_on(*fibers_[i]);
        }
        if (!error_.empty()) {
          throw std::runtime_error(error_);
        }
      }
    }
  }

  // Waits until condition() holds, and lets other threads run meanwhile. The scheduler checks the condition for this
  // thread.
  template <class Condition>
  static void wait(const Condition& condition) {
    if (!condition()) {
      Fiber& self = *active_->fibers_[active_->current_];
      const std::function<bool()> check = std::cref(condition);
      self.condition = &check;
      pause(self);
      self.condition = nullptr;
    }
    active_->progress_ = true;
  }

  // Notes that something happened for which a thread may wait.
  static void progress() {
    active_->progress_ = true;
  }

  static int current() {
    return active_->current_;
  }
  static bool coin() {
    return active_->random_() % 2 == 0;
  }
  static size_t any(size_t count) {
    return active_->random_() % count;
  }

 private:
  struct Fiber {
    ucontext_t context;  // The fiber begins here.
    jmp_buf place;       // The fiber goes on here.
    bool begun = false;
    static constexpr size_t kStackBytes = 96 << 10;
    std::unique_ptr<char[]> stack{new char[kStackBytes]};
    bool done = false;
    const std::function<bool()>* condition = nullptr;  // The fiber waits for this.

    bool may_go_on() const {
      return condition == nullptr || (*condition)();
    }
  };

  // Lets some warps fall far behind the others, as on a GPU.
  void put_a_warp_to_sleep() {
    for (int& sweeps : asleep_) {
      sweeps -= sweeps > 0;
    }
    if (random_() % 4 == 0) {
      asleep_[random_() % asleep_.size()] = static_cast<int>(random_() % 50);
    }
  }

  void start(int i) {
    fibers_[i] = std::make_unique<Fiber>();
    ucontext_t& context = fibers_[i]->context;
    getcontext(&context);
    context.uc_stack.ss_sp = fibers_[i]->stack.get();
    context.uc_stack.ss_size = Fiber::kStackBytes;
    context.uc_link = nullptr;
    makecontext(&context, &Fibers::enter, 0);
    ++running_;
  }

  static void enter() {
    Fibers& self = *active_;
    const int i = self.current_;
    try {
      (*self.body_)(i);
    } catch (const std::exception& error) {
      self.error_ = error.what();
    }
    self.fibers_[i]->done = true;
    self.progress_ = true;
    --self.running_;
    _longjmp(self.scheduler_, 1);
  }

  // Switches from the scheduler to a fiber. swapcontext would take a call of the system for each switch.
  [[gnu::noinline]] void go_on(Fiber& fiber) {
    if (_setjmp(scheduler_) == 0) {
      if (fiber.begun) {
        _longjmp(fiber.place, 1);
      }
      fiber.begun = true;
      setcontext(&fiber.context);
    }
  }

  // Switches from the current fiber to the scheduler.
  [[gnu::noinline]] static void pause(Fiber& fiber) {
    if (_setjmp(fiber.place) == 0) {
      _longjmp(active_->scheduler_, 1);
    }
  }

  static inline Fibers* active_ = nullptr;
  std::mt19937 random_;
  std::vector<int> order_;
  // Each warp still sleeps for this many sweeps.
  std::vector<int> asleep_;
  std::vector<std::unique_ptr<Fiber>> fibers_;
  const std::function<void(int)>* body_ = nullptr;
  jmp_buf scheduler_;
  int current_ = 0, running_ = 0;
  bool progress_ = true;
  std::string error_;
};

// A barrier for a fixed number of fibers. The last fiber to arrive may do something for all of them.
class Barrier {
 public:
  template <class Last>
  void arrive_and_wait(int expected, const Last& last) {
    const long generation = generation_;
    if (++arrived_ == expected) {
      last();
      arrived_ = 0;
      ++generation_;
    }
    Fibers::wait([&] { return generation_ != generation; });
  }

 private:
  int arrived_ = 0;
  long generation_ = 0;
};

}  // namespace emulation
