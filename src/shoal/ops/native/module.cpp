// Python bindings of the kernels. Arrays are numpy's; shapes are checked here, because C++ below checks nothing.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <memory>
#include <optional>
#include <stdexcept>

#include "cpu.h"
#include "kernels.h"
#include "pool.h"

namespace nb = nanobind;
using namespace nb::literals;

void bind_step(nb::module_& m) __attribute__((weak));  // module_step.cpp

namespace shoal {
namespace {

using Floats = nb::ndarray<const float, nb::numpy, nb::c_contig, nb::device::cpu>;
using FloatsOut = nb::ndarray<float, nb::numpy, nb::c_contig, nb::device::cpu>;
using Bytes = nb::ndarray<const uint8_t, nb::numpy, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
template <class T> using Array = nb::ndarray<T, nb::numpy, nb::c_contig, nb::device::cpu>;

void need(bool ok, const char* what) {
    if (!ok) throw std::invalid_argument(what);
}

// A new numpy array that owns 64-byte aligned memory.
template <class T> Array<T> fresh(std::initializer_list<size_t> shape) {
    size_t count = 1;
    for (size_t n : shape) count *= n;
    size_t bytes = (count * sizeof(T) + 63) / 64 * 64;
    void* memory = std::aligned_alloc(64, bytes ? bytes : 64);
    if (!memory) throw std::bad_alloc();
    nb::capsule owner(memory, [](void* p) noexcept { std::free(p); });
    return Array<T>(memory, shape.size(), shape.begin(), owner);
}

Matrix matrix(Format format, int rows, int cols, const Bytes& data) {
    Matrix w{format, rows, cols, data.data()};
    need(rows >= 0 && cols > 0, "rows and cols must be positive");
    need(data.size() == w.blocks() * w.block_bytes(), "packed bytes do not fit rows, cols and format");
    need((uintptr_t)data.data() % 64 == 0, "packed bytes must be 64-byte aligned");
    return w;
}

struct Memory {  // huge pages, seen from Python as a numpy array of bytes
    void* data;
    size_t bytes;
    explicit Memory(size_t n) : data(huge_alloc(n ? n : 1)), bytes(n) {
        if (!data) throw std::bad_alloc();
    }
    ~Memory() { huge_free(data, bytes ? bytes : 1); }
    Memory(const Memory&) = delete;
};

// Activations with memory of their own, for calls from Python.
struct OwnActivations {
    std::unique_ptr<void, void (*)(void*)> memory{nullptr, std::free};
    Activations a;
    OwnActivations(const Floats& x) {
        need(x.ndim() == 2, "activations must be [tokens, cols]");
        int tokens = int(x.shape(0)), cols = int(x.shape(1));
        memory.reset(std::aligned_alloc(64, (activation_bytes(tokens, cols) + 63) / 64 * 64));
        if (!memory) throw std::bad_alloc();
        a = make_activations(memory.get(), tokens, cols);
        a.x = x.data(), a.ldx = cols;
        kernels().quantise(x.data(), cols, a, 0, tokens);
    }
};

}  // namespace
}  // namespace shoal

NB_MODULE(_core, m) {
    using namespace shoal;
    m.attr("ROWS") = kRows, m.attr("GROUP") = kGroup, m.attr("CHUNK") = kChunk, m.attr("LAYOUT") = kLayout, m.attr("SPAN") = kSpan;

    nb::enum_<Format>(m, "Format", "How weights are stored; kernels.h says what each means.")
        .value("F32", Format::F32).value("BF16", Format::BF16).value("Q8", Format::Q8).value("Q4", Format::Q4).value("Q4M", Format::Q4M)
        .value("F16", Format::F16);

    m.def("kernels", [] { return kernels().name; }, "Name of the instruction set in use.");
    m.def("available_kernels", [] {
        std::vector<std::string> names;
        for (auto name = available_kernels(); *name; name++) names.emplace_back(*name);
        return names;
    }, "Names of the instruction sets that this build has and this CPU runs, best first.");
    m.def("use_kernels", [](const std::string& name) {
        if (!use_kernels(name.c_str())) throw std::invalid_argument("no such kernels here: " + name);
    }, "name"_a, "Force an instruction set (tests, comparisons).");

    m.def("block_bytes", [](Format format, int cols) { return Matrix::block_bytes(format, cols); }, "format"_a, "cols"_a,
          "Bytes of 16 packed rows.");
    m.def("pack", [](Format format, const Floats& x) {
        need(x.ndim() == 2 && x.shape(1) > 0, "rows must be [rows, cols]");
        int rows = int(x.shape(0)), cols = int(x.shape(1));
        auto out = fresh<uint8_t>({size_t(rows + kRows - 1) / kRows, Matrix::block_bytes(format, cols)});
        nb::gil_scoped_release release;
        pack(format, x.data(), cols, rows, cols, out.data());
        return out;
    }, "format"_a, "rows"_a, "Float rows [R, D] packed: uint8 [R / 16 rounded up, block_bytes].");
    m.def("pack_groups", [](Format format, const Array<const int8_t>& q, const Array<const uint16_t>& scale, std::optional<Array<const uint16_t>> minimum) {
        need(is_quantised(format), "groups are for Q8, Q4 and Q4M");
        need(q.ndim() == 2 && q.shape(1) > 0 && q.shape(1) % kGroup == 0, "q must be [rows, a multiple of 32]");
        int rows = int(q.shape(0)), cols = int(q.shape(1));
        need(scale.size() == size_t(rows) * cols / kGroup, "scale must be [rows, cols / 32]");
        need((format == Format::Q4M) == minimum.has_value(), "a minimum belongs to Q4M and only to it");
        need(!minimum || minimum->size() == scale.size(), "minimum must be [rows, cols / 32]");
        if (format != Format::Q8)
            for (size_t i = 0; i < q.size(); i++) need(q.data()[i] >= 0 && q.data()[i] < 16, "4-bit values must be 0..15");
        auto out = fresh<uint8_t>({size_t(rows + kRows - 1) / kRows, Matrix::block_bytes(format, cols)});
        nb::gil_scoped_release release;
        pack_groups(format, q.data(), scale.data(), minimum ? minimum->data() : nullptr, rows, cols, out.data());
        return out;
    }, "format"_a, "q"_a, "scale"_a, "minimum"_a = nb::none(),
       "Integers int8 [R, D] (4 bits: 0..15) and fp16 bits uint16 [R, D/32] packed without loss.");
    m.def("unpack", [](Format format, int rows, int cols, const Bytes& data) {
        Matrix w = matrix(format, rows, cols, data);
        auto out = fresh<float>({size_t(rows), size_t(cols)});
        unpack(w, out.data(), cols);
        return out;
    }, "format"_a, "rows"_a, "cols"_a, "data"_a, "Packed bytes as floats [R, D].");

    nb::class_<Memory>(m, "Memory", "Bytes in huge pages, for packed weights.")
        .def(nb::init<size_t>(), "bytes"_a)
        .def("array", [](nb::handle_t<Memory> self) {
            Memory& memory = nb::cast<Memory&>(self);
            size_t shape[1] = {memory.bytes};
            return nb::ndarray<uint8_t, nb::numpy, nb::ndim<1>>(memory.data, 1, shape, self);
        }, "uint8 [bytes]; keeps the memory alive.");

    nb::class_<Pool>(m, "Pool", "Threads for native steps.")
        .def(nb::init<int>(), "max_threads"_a)
        .def_prop_ro("max_threads", &Pool::max_threads);

    // ---- single kernels, for tests and the benchmark; the engine's step calls them in C++
    m.def("peak", [](const std::string& what, double size, Pool& pool, int threads, std::optional<Bytes> data) {
        need(!data || data->size() >= 1 << 20, "too little data");
        const Kernels& k = kernels();
        nb::gil_scoped_release release;
        double work = 0;
        volatile float sink = 0;  // or the compiler drops the work
        pool.run(threads, [&](Worker& me) {
            if (data) {
                const size_t part = data->size() / me.threads / 4096 * 4096;
                const long passes = std::max(1L, long(size / me.threads / double(part)));
                for (long i = 0; i < passes; i++) sink = k.peak_read(data->data() + part * me.index, part);
                if (!me.index) work = double(passes) * double(part) * me.threads;
            } else {
                const bool floats = what == "float";
                const double round = floats ? k.peak_float_round : k.peak_integer_round;
                const long rounds = long(size / me.threads / round);
                sink = floats ? k.peak_float(rounds) : k.peak_integer(rounds);
                if (!me.index) work = round * double(rounds) * me.threads;
            }
        });
        return work;
    }, "what"_a, "size"_a, "pool"_a, "threads"_a, "data"_a = nb::none(),
       "Work of about `size` at this machine's best: bytes read (with data), or \"float\" or \"integer\" multiply-adds. "
       "Returns how much was done; the caller holds the watch.");
    m.def("quantise", [](const Floats& x) {
        OwnActivations own(x);
        size_t tokens = x.shape(0), width = padded(own.a.cols), groups = width / kGroup;
        auto q = fresh<int8_t>({tokens, width});
        auto scale = fresh<float>({tokens, groups});
        auto sum = fresh<int32_t>({tokens, groups});
        std::copy_n(own.a.q, tokens * width, q.data());
        std::copy_n(own.a.scale, tokens * groups, scale.data());
        std::copy_n(own.a.sum, tokens * groups, sum.data());
        return nb::make_tuple(q, scale, sum);
    }, "x"_a, "Activations [T, D] -> int8 [T, D'], scales [T, D'/32], sums [T, D'/32]; D' is D padded to 64.");
    m.def("matmul", [](Format format, int rows, int cols, const Bytes& data, const Floats& x, Pool* pool, int threads, int repeat) {
        Matrix w = matrix(format, rows, cols, data);
        need(x.ndim() == 2 && int(x.shape(1)) == cols, "activations must be [tokens, cols]");
        OwnActivations own(x);
        int tokens = int(x.shape(0));
        auto y = fresh<float>({size_t(tokens), size_t(rows)});
        nb::gil_scoped_release release;
        const Kernels& k = kernels();
        for (int i = 0; i < repeat; i++) {
            if (pool) {
                pool->run(threads, [&](Worker& me) { k.matmul(w, own.a, tokens, y.data(), rows, me.begin(w.blocks()), me.end(w.blocks())); });
            } else {
                k.matmul(w, own.a, tokens, y.data(), rows, 0, w.blocks());
            }
        }
        return y;
    }, "format"_a, "rows"_a, "cols"_a, "data"_a, "x"_a, "pool"_a = nb::none(), "threads"_a = 1, "repeat"_a = 1,
       "x [T, D] times packed weights [R, D]: floats [T, R].");
    m.def("attention", [](const Floats& k, const Floats& v, const Floats& q, int block_size, std::vector<int32_t> block_table,
                          float scale, int split) {
        // k [P, N_kv, k_dim], v [P, N_kv, v_dim]: all positions of a sequence; q [Q, N, k_dim]: its last Q.
        need(k.ndim() == 3 && v.ndim() == 3 && q.ndim() == 3 && k.shape(0) == v.shape(0) && k.shape(1) == v.shape(1) &&
             k.shape(2) == q.shape(2) && q.shape(0) <= k.shape(0) && q.shape(1) % k.shape(1) == 0, "shapes do not fit");
        need(block_size > 0 && block_size % 16 == 0, "block_size must be a multiple of 16");
        int positions = int(k.shape(0)), queries = int(q.shape(0));
        need(block_table.size() * block_size >= size_t(positions), "the block table is too short");
        KvCache c;
        c.block_size = block_size, c.kv_heads = int(k.shape(1)), c.k_dim = int(k.shape(2)), c.v_dim = int(v.shape(2));
        int blocks = 0;
        for (int32_t b : block_table) need(b >= 0 && b < 1 << 20, "no such block"), blocks = std::max(blocks, b + 1);
        auto ks = fresh<uint16_t>({size_t(blocks) * c.k_block()});
        auto vs = fresh<uint16_t>({size_t(blocks) * c.v_block()});
        c.k = ks.data(), c.v = vs.data();
        std::fill_n(c.k, ks.size(), half(0)), std::fill_n(c.v, vs.size(), half(0));
        const Kernels& kn = kernels();
        for (int p = 0; p < positions; p++)
            kn.store(c, block_table.data(), p, k.data() + size_t(p) * c.kv_heads * c.k_dim, v.data() + size_t(p) * c.kv_heads * c.v_dim);
        auto out = fresh<float>({q.shape(0), q.shape(1), v.shape(2)});
        AttentionTask task;
        task.q = q.data(), task.out = out.data(), task.heads = int(q.shape(1));
        task.ldq = task.heads * c.k_dim, task.ldo = task.heads * c.v_dim;
        task.table = block_table.data(), task.start = positions - queries, task.queries = queries, task.scale = scale;
        for (int h = 0; h < c.kv_heads; h++) {
            if (split < 0) {  // spans apart, then merged
                int spans = (positions + kSpan - 1) / kSpan;
                size_t stride = size_t(queries) * task.heads / c.kv_heads * (c.v_dim + 2);
                auto partial = fresh<float>({spans * stride});
                for (int s = spans - 1; s >= 0; s--) kn.attention_span(c, task, h, s, partial.data() + s * stride);
                kn.attention_merge(c, task, h, spans, partial.data(), stride);
            } else {
                int rows = queries * task.heads / c.kv_heads, step = split ? split : rows;
                for (int i = 0; i < rows; i += step) kn.attention(c, task, h, i, std::min(step, rows - i));
            }
        }
        return out;
    }, "k"_a, "v"_a, "q"_a, "block_size"_a, "block_table"_a, "scale"_a, "split"_a = 0,
       "Causal attention of a sequence's last Q positions over a cache filled from k and v: [Q, N, v_dim]. "
       "split: rows (query * N/N_kv + head) in a call (0: all), -1: spans computed apart and merged.");
    m.def("rmsnorm", [](const Floats& x, const Floats& weight, float eps) {
        need(x.ndim() == 2 && weight.ndim() == 1 && x.shape(1) == weight.shape(0), "shapes do not fit");
        auto out = fresh<float>({x.shape(0), x.shape(1)});
        for (size_t t = 0; t < x.shape(0); t++)
            kernels().rmsnorm(x.data() + t * x.shape(1), weight.data(), eps, int(x.shape(1)), out.data() + t * x.shape(1));
        return out;
    }, "x"_a, "weight"_a, "eps"_a);
    m.def("rope", [](FloatsOut x, const Floats& cos, const Floats& sin, bool interleaved) {
        need(x.ndim() == 2 && cos.ndim() == 1 && sin.ndim() == 1 && cos.shape(0) == sin.shape(0) && 2 * cos.shape(0) <= x.shape(1), "shapes do not fit");
        kernels().rope(x.data(), int(x.shape(0)), x.shape(1), int(2 * cos.shape(0)), cos.data(), sin.data(), interleaved);
    }, "x"_a, "cos"_a, "sin"_a, "interleaved"_a, "Rotates the heads x [N, H] in place.");
    m.def("silu_mul", [](const Floats& gate, const Floats& up, bool blocks) {
        auto out = fresh<float>({up.size()});
        if (blocks) {
            need(gate.size() == 2 * up.size(), "shapes do not fit");  // `up` gives the size only
            kernels().silu_mul_blocks(gate.data(), int(up.size()), out.data());
        } else {
            need(gate.size() == up.size(), "shapes do not fit");
            kernels().silu_mul(gate.data(), up.data(), int(up.size()), out.data());
        }
        return out;
    }, "gate"_a, "up"_a, "blocks"_a = false);
    m.def("softmax", [](FloatsOut x) {
        need(x.size() > 0, "empty");
        return kernels().softmax(x.data(), int(x.size()));
    }, "x"_a, "In place; returns log sum exp.");
    m.def("argmax", [](const Floats& x) { return kernels().argmax(x.data(), int(x.size())); }, "x"_a);
    m.def("axpy", [](FloatsOut x, float a, const Floats& y) {
        need(x.size() == y.size(), "shapes do not fit");
        kernels().axpy(x.data(), a, y.data(), int(x.size()));
    }, "x"_a, "a"_a, "y"_a, "x += a y.");

    if (bind_step) bind_step(m);
}
