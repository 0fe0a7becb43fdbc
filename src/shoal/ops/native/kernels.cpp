// Which set of kernels is in use, and the memory they work in.
#include "kernels.h"

#include <cstdlib>
#include <cstring>
#include <new>
#include <sys/mman.h>

#include "cpu.h"

namespace shoal {

#define SHOAL_DECLARE(isa) namespace isa { extern const Kernels table; }
SHOAL_DECLARE(plain)
#ifdef SHOAL_HAS_AVX2
SHOAL_DECLARE(avx2)
SHOAL_DECLARE(avx512)
SHOAL_DECLARE(amx)
#endif

namespace {

struct Choice {
    const Kernels* usable[5] = {};
    const char* names[5] = {};
    int count = 0;
    const Kernels* current = nullptr;
    void offer(const Kernels& table, bool runs) {
        if (!runs) return;
        usable[count] = &table, names[count++] = table.name;
    }
    Choice() {
#ifdef SHOAL_HAS_AVX2
        const Cpu& cpu = this_cpu();
        offer(amx::table, cpu.amx_int8);
        offer(avx512::table, cpu.avx512_vnni);
        offer(avx2::table, cpu.avx2);
#endif
        offer(plain::table, true);
        current = usable[0];
        if (const char* wanted = std::getenv("SHOAL_KERNELS")) use(wanted);
    }
    bool use(const char* name) {
        for (int i = 0; i < count; i++)
            if (!std::strcmp(names[i], name)) return current = usable[i], true;
        return false;
    }
};

Choice& choice() {
    static Choice instance;
    return instance;
}

struct Scratch {
    void* memory = nullptr;
    size_t bytes = 0;
    ~Scratch() { std::free(memory); }
};

}  // namespace

const Kernels& kernels() { return *choice().current; }
bool use_kernels(const char* name) { return choice().use(name); }
const char* const* available_kernels() { return choice().names; }

void* thread_scratch(size_t bytes) {
    thread_local Scratch scratch;
    if (scratch.bytes < bytes) {
        std::free(scratch.memory);
        scratch.bytes = (bytes + 4095) / 4096 * 4096;
        scratch.memory = std::aligned_alloc(64, scratch.bytes);
        if (!scratch.memory) throw std::bad_alloc();
    }
    return scratch.memory;
}

constexpr size_t kHuge = size_t(2) << 20;

// Aligned by mapping more than is wanted and giving the ends back.
void* huge_alloc(size_t bytes) {
    bytes = (bytes + kHuge - 1) / kHuge * kHuge;
    char* raw = (char*)mmap(nullptr, bytes + kHuge, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (raw == MAP_FAILED) return nullptr;
    char* aligned = (char*)(((uintptr_t)raw + kHuge - 1) / kHuge * kHuge);
    if (aligned > raw) munmap(raw, aligned - raw);
    if (aligned < raw + kHuge) munmap(aligned + bytes, raw + kHuge - aligned);
#ifdef MADV_HUGEPAGE
    madvise(aligned, bytes, MADV_HUGEPAGE);
#endif
    return aligned;
}

void huge_free(void* memory, size_t bytes) {
    if (memory) munmap(memory, (bytes + kHuge - 1) / kHuge * kHuge);
}

}  // namespace shoal
