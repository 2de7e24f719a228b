#include "mapped_range.hpp"

#ifdef _WIN32  // Windows does not allow truncating a mapped file.

namespace mergekern {
std::uintptr_t guard(std::uintptr_t, std::size_t) { return 0; }
void unguard(std::uintptr_t) {}
}  // namespace mergekern

#else

#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <mutex>
#include <vector>

namespace mergekern {
namespace {

// A list that only grows, so that the signal handler can walk it without a lock. Entries of ended ranges are reused.
struct Range {
  std::atomic<std::uintptr_t> begin{0}, end{0};
  Range* next = nullptr;
};

std::atomic<Range*> ranges{nullptr};
std::atomic<bool> gave_up{false};
std::uintptr_t page_size = 0;
struct sigaction previous;

std::mutex& lock() {
  static std::mutex mutex;
  return mutex;
}

std::vector<Range*>& unused() {
  static std::vector<Range*> list;
  return list;
}

// Makes only async-signal-safe calls: mmap is a plain system call on all systems that have SIGBUS.
void on_bus_error(int signal, siginfo_t* info, void*) {
  const int saved = errno;
  const auto address = reinterpret_cast<std::uintptr_t>(info->si_addr);
  for (Range* range = info->si_code == BUS_ADRERR ? ranges.load() : nullptr; range; range = range->next) {
    const std::uintptr_t begin = range->begin, end = range->end;
    if (address < begin || address >= end) continue;
    void* page = reinterpret_cast<void*>(address & ~(page_size - 1));
    const std::size_t size = end - reinterpret_cast<std::uintptr_t>(page);
    const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED;
    if (mmap(page, size, PROT_READ | PROT_WRITE, flags, -1, 0) != MAP_FAILED) {
      errno = saved;
      return;
    }
  }
  // The address is in no guarded range: the previous handler gets the signal. If it comes back, the default action
  // does.
  if (gave_up.exchange(true) || sigaction(signal, &previous, nullptr) != 0) ::signal(signal, SIG_DFL);
  raise(signal);
  errno = saved;
}

void install() {
  page_size = static_cast<std::uintptr_t>(sysconf(_SC_PAGESIZE));
  struct sigaction current;
  if (sigaction(SIGBUS, nullptr, &current) != 0 || current.sa_sigaction == on_bus_error) return;
  struct sigaction ours = {};
  ours.sa_sigaction = on_bus_error;
  ours.sa_flags = SA_SIGINFO | SA_ONSTACK;
  sigemptyset(&ours.sa_mask);
  previous = current;
  sigaction(SIGBUS, &ours, nullptr);
}

}  // namespace

std::uintptr_t guard(std::uintptr_t begin, std::size_t size) {
  const std::lock_guard<std::mutex> held(lock());
  install();  // each time, since another library may have replaced the handler
  Range* range;
  if (unused().empty()) {
    range = new Range;  // never freed, since the handler may be walking the list
    range->next = ranges.load();
    ranges.store(range);
  } else {
    range = unused().back();
    unused().pop_back();
  }
  range->end = begin + size;
  range->begin = begin;
  return reinterpret_cast<std::uintptr_t>(range);
}

void unguard(std::uintptr_t number) {
  if (number == 0) return;
  const std::lock_guard<std::mutex> held(lock());
  auto* range = reinterpret_cast<Range*>(number);
  range->end = 0;
  range->begin = 0;
  unused().push_back(range);
}

}  // namespace mergekern

#endif
