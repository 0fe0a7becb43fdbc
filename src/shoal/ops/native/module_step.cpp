// Python binding of the step. Sizes are checked here, because step.cpp checks nothing.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <stdexcept>
#include <string>

#include "sample.h"
#include "step.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace shoal {
namespace {

using Vector = nb::ndarray<const float, nb::numpy, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Bytes = nb::ndarray<const uint8_t, nb::numpy, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Packed = std::tuple<Format, int, int, Bytes>;  // format, rows, cols, the bytes of one or more equal matrices

void need(bool ok, const std::string& what) {
    if (!ok) throw std::invalid_argument(what);
}

template <class T> nb::ndarray<T, nb::numpy> fresh(std::initializer_list<size_t> shape) {
    size_t count = 1;
    for (size_t n : shape) count *= n;
    T* memory = new T[count ? count : 1];
    nb::capsule owner(memory, [](void* p) noexcept { delete[] static_cast<T*>(p); });
    return nb::ndarray<T, nb::numpy>(memory, shape.size(), shape.begin(), owner);
}

// Whole numbers of any Python sequence.
std::vector<int32_t> integers(nb::handle sequence) {
    nb::object fast = nb::steal(PySequence_Fast(sequence.ptr(), "a sequence of whole numbers is needed"));
    if (!fast.is_valid()) throw nb::python_error();
    Py_ssize_t count = PySequence_Fast_GET_SIZE(fast.ptr());
    std::vector<int32_t> out(static_cast<size_t>(count));
    for (Py_ssize_t i = 0; i < count; i++) {
        PyObject* item = PySequence_Fast_GET_ITEM(fast.ptr(), i);
        long value = PyLong_Check(item) ? PyLong_AsLong(item) : PyNumber_AsSsize_t(item, nullptr);
        if (value == -1 && PyErr_Occurred()) throw nb::python_error();
        out[size_t(i)] = int32_t(value);
    }
    return out;
}

template <class T> void read(const nb::dict& values, const char* name, T& into) {
    if (values.contains(name)) into = nb::cast<T>(values[name]);
}

// A step and what its pointers point into.
struct PyStep {
    Step step;
    std::vector<nb::object> alive;
    std::unordered_map<int, std::vector<nb::object>> adapters;

    PyStep(Shape shape, int cache_blocks, int block_size, int threads) : step(std::move(shape), cache_blocks, block_size, threads) {}

    Stack stack(const Packed& packed, std::vector<nb::object>& keep, int count = 1) {
        auto& [format, rows, cols, data] = packed;
        Matrix m{format, rows, cols, data.data()};
        need(rows > 0 && cols > 0, "a matrix needs rows and columns");
        need(data.size() == size_t(count) * size_t(m.blocks()) * m.block_bytes(), "packed bytes do not fit their sizes");
        need(reinterpret_cast<uintptr_t>(data.data()) % 64 == 0, "packed bytes must be 64-byte aligned");
        keep.push_back(nb::cast(data));
        return {m, count};
    }
    void checked(const Matrix& m, int rows, int cols, const char* what) {
        need(m.rows == rows && m.cols == cols, std::string(what) + " is " + std::to_string(m.rows) + " x " + std::to_string(m.cols) +
                                                   ", not " + std::to_string(rows) + " x " + std::to_string(cols));
    }
    void vector(const nb::dict& values, const char* name, int size, const float*& into, bool optional = false) {
        if (optional && !values.contains(name)) return;
        auto array = nb::cast<Vector>(values[name]);
        need(int(array.size()) == size, std::string(name) + " has the wrong size");
        into = array.data();
        alive.push_back(nb::cast(array));
    }
    Linear linear(const nb::dict& values, const char* name, int rows, int cols) {
        Linear l;
        for (auto& packed : nb::cast<std::vector<Packed>>(values[name])) l.parts.push_back(stack(packed, alive).first);
        for (const Matrix& part : l.parts) need(part.cols == cols, std::string(name) + " has the wrong number of columns");
        need(l.rows() == rows, std::string(name) + " has the wrong number of rows");
        std::string bias = std::string(name) + "_bias";
        vector(values, bias.c_str(), rows, l.bias, true);
        return l;
    }
    Mlp mlp(const nb::dict& values, const std::string& name, int count) {
        Mlp m;
        m.gate_up = stack(nb::cast<Packed>(values[(name + "_gate_up").c_str()]), alive, count);
        m.down = stack(nb::cast<Packed>(values[(name + "_down").c_str()]), alive, count);
        const Shape& p = step.shape();
        need(m.gate_up.first.rows % (2 * kRows) == 0, "gate and up must be whole blocks");
        checked(m.gate_up.first, m.gate_up.first.rows, p.hidden, "gate_up");
        int width = m.gate_up.first.rows / 2;
        checked(m.down.first, p.hidden, m.down.first.cols, "down");
        need(m.down.first.cols <= width && m.down.first.cols > width - kRows, "down does not fit gate and up");
        return m;
    }

    void set_layer(int index, const nb::dict& values) {
        const Shape& p = step.shape();
        need(index >= 0 && index < p.layers + p.mtp, "no such layer");
        Layer& l = step.layers[size_t(index)];
        vector(values, "input_norm", p.hidden, l.input_norm);
        vector(values, "post_norm", p.hidden, l.post_norm);
        if (p.latent) {
            int query = p.heads * (p.nope + p.rope);
            l.in = linear(values, "in", (p.q_rank ? p.q_rank : query) + p.latent + p.rope, p.hidden);
            vector(values, "latent_norm", p.latent, l.latent_norm);
            if (p.q_rank) {
                vector(values, "q_a_norm", p.q_rank, l.q_a_norm);
                l.q_b = linear(values, "q_b", query, p.q_rank);
            }
            l.k_up = stack(nb::cast<Packed>(values["k_up"]), alive, p.heads);
            l.v_up = stack(nb::cast<Packed>(values["v_up"]), alive, p.heads);
            checked(l.k_up.first, p.latent, p.nope, "k_up");
            checked(l.v_up.first, p.value, p.latent, "v_up");
            l.out = linear(values, "out", p.hidden, p.heads * p.value);
        } else {
            l.in = linear(values, "in", (p.heads + 2 * p.kv_heads) * p.head_dim, p.hidden);
            l.out = linear(values, "out", p.hidden, p.heads * p.head_dim);
            vector(values, "q_norm", p.head_dim, l.q_norm, true);
            vector(values, "k_norm", p.head_dim, l.k_norm, true);
            need(!l.q_norm == !l.k_norm, "q_norm and k_norm come together");
        }
        need(l.out.parts.size() == 1, "the output projection is one matrix");
        if (values.contains("dense_gate_up")) l.dense = mlp(values, "dense", 1);
        if (values.contains("router")) {
            l.router = stack(nb::cast<Packed>(values["router"]), alive).first;
            need(l.router.format == Format::F32, "the router is F32");
            checked(l.router, p.experts, p.hidden, "router");
            vector(values, "router_bias", p.experts, l.router_bias, true);
            l.experts = mlp(values, "experts", p.experts);
        }
        need(l.dense.exists() || l.experts.exists(), "a layer needs a feed-forward network");
        if (index < p.layers) return;
        vector(values, "embedding_norm", p.hidden, l.embedding_norm);
        vector(values, "hidden_norm", p.hidden, l.hidden_norm);
        vector(values, "output_norm", p.hidden, l.output_norm);
        l.join = stack(nb::cast<Packed>(values["join"]), alive).first;
        checked(l.join, p.hidden, 2 * p.hidden, "join");
    }

    void set_ends(const nb::dict& values) {
        const Shape& p = step.shape();
        step.embedding = stack(nb::cast<Packed>(values["embedding"]), alive).first;
        checked(step.embedding, p.vocab, p.hidden, "embedding");
        step.head = linear(values, "head", p.vocab, p.hidden);
        vector(values, "norm", p.hidden, step.final_norm);
    }

    std::vector<Sequence> sequences(const nb::list& tokens, const nb::list& starts, const nb::list& tables, int block_size) {
        const Shape& p = step.shape();
        size_t count = nb::len(tokens);
        need(nb::len(starts) == count && nb::len(tables) == count, "the lists have different lengths");
        std::vector<Sequence> batch(count);
        for (size_t i = 0; i < count; i++) {
            Sequence& s = batch[i];
            s.tokens = integers(tokens[i]);
            s.table = integers(tables[i]);
            s.start = nb::cast<int>(starts[i]);
            need(!s.tokens.empty() && s.start >= 0, "a chunk is empty");
            for (int32_t id : s.tokens) need(id >= 0 && id < p.vocab, "a token id is outside of the vocabulary");
            need(s.table.size() * size_t(block_size) >= size_t(s.start) + s.tokens.size(), "a block table is too short");
            for (int32_t block : s.table) need(block >= 0 && block < step.cache_blocks(), "no such cache block");
        }
        return batch;
    }

    std::vector<std::vector<int32_t>> draft(const nb::list& tokens, const nb::list& starts, const nb::list& tables, const std::vector<int>& counts,
                                            int block_size, int threads) {
        need(step.shape().mtp > 0, "there is no multi-token prediction module");
        std::vector<Sequence> batch = sequences(tokens, starts, tables, block_size);
        need(counts.size() == batch.size(), "the lists have different lengths");
        for (size_t i = 0; i < batch.size(); i++) {
            const Sequence& s = batch[i];
            need(counts[i] >= 0 && s.table.size() * size_t(block_size) >= size_t(s.start) + s.tokens.size() + size_t(counts[i]),
                 "a block table has no room for the drafts");
        }
        nb::gil_scoped_release release;
        return step.draft(std::move(batch), counts, threads);
    }

    nb::tuple run(const nb::list& tokens, const nb::list& starts, const nb::list& tables, const nb::list& logits, const nb::list& adapters,
                  bool hidden, bool routing, int block_size, int threads) {
        const Shape& p = step.shape();
        size_t count = nb::len(tokens);
        need(nb::len(logits) == count && nb::len(adapters) == count, "the lists have different lengths");
        std::vector<Sequence> batch = sequences(tokens, starts, tables, block_size);
        size_t rows = 0, total = 0;
        for (size_t i = 0; i < count; i++) {
            Sequence& s = batch[i];
            s.logits = nb::cast<int>(logits[i]);
            s.adapter = nb::cast<int>(adapters[i]);
            need(s.logits >= 0 && size_t(s.logits) <= s.tokens.size(), "a chunk asks too much");
            rows += size_t(s.logits);
            total += s.tokens.size();
        }
        auto out = fresh<float>({rows, size_t(p.vocab)});
        Results results;
        results.logits = out.data();
        nb::object hidden_out = nb::none(), routing_out = nb::none();
        if (hidden) {
            auto array = fresh<float>({rows, size_t(p.hidden)});
            results.hidden = array.data();
            hidden_out = nb::cast(array);
        }
        if (routing && step.moe_layers()) {
            auto array = fresh<int32_t>({total, size_t(step.moe_layers()), size_t(p.experts_per_token)});
            results.routing = array.data();
            routing_out = nb::cast(array);
        }
        if (total) {
            nb::gil_scoped_release release;
            step.run(batch, results, threads);
        }
        return nb::make_tuple(out, hidden_out, routing_out);
    }

    void add_update(int adapter, int layer, int product, int index, const Packed& a, const Packed& b) {
        auto& keep = adapters[adapter];
        LowRank update{stack(a, keep).first, stack(b, keep).first};
        need(update.a.format == Format::F32 && update.b.format == Format::F32 && update.a.rows == update.b.cols, "a and b do not fit");
        step.add_update(adapter, layer, Product(product), index, update);
    }
    void remove_adapter(int adapter) {
        step.remove_adapter(adapter);
        adapters.erase(adapter);
    }
};

Shape shape_of(const nb::dict& d) {
    Shape p;
    read(d, "hidden", p.hidden), read(d, "heads", p.heads), read(d, "kv_heads", p.kv_heads), read(d, "head_dim", p.head_dim);
    read(d, "vocab", p.vocab), read(d, "layers", p.layers), read(d, "latent", p.latent), read(d, "rope", p.rope);
    read(d, "nope", p.nope), read(d, "value", p.value), read(d, "q_rank", p.q_rank), read(d, "experts", p.experts);
    read(d, "experts_per_token", p.experts_per_token), read(d, "groups", p.groups), read(d, "kept_groups", p.kept_groups);
    read(d, "interleaved", p.interleaved), read(d, "sigmoid", p.sigmoid), read(d, "normalise", p.normalise), read(d, "two_best", p.two_best);
    read(d, "eps", p.eps), read(d, "scale", p.scale), read(d, "rope_factor", p.rope_factor), read(d, "routed_scale", p.routed_scale);
    read(d, "frequencies", p.frequencies), read(d, "mtp", p.mtp);
    need(p.hidden > 0 && p.heads > 0 && p.vocab > 0 && p.layers > 0 && p.rope > 0, "sizes must be positive");
    need(p.mtp == 0 || p.mtp == 1, "one multi-token prediction module at most");
    need(p.latent > 0 || (p.kv_heads > 0 && p.heads % p.kv_heads == 0 && p.head_dim == p.rope), "heads do not fit");
    need(p.frequencies.size() == size_t(p.rope / 2) && p.rope % 2 == 0, "frequencies do not fit");
    need(p.experts_per_token <= p.experts && p.groups > 0 && p.experts % p.groups == 0, "experts do not fit");
    return p;
}

}  // namespace
}  // namespace shoal

void bind_step(nb::module_& m) {
    using namespace shoal;
    nb::class_<PyStep>(m, "Step", "The forward pass of a decoder; engine/native_runner.py describes the model to it.")
        .def("__init__", [](PyStep* self, const nb::dict& shape, int cache_blocks, int block_size, int threads) {
            need(cache_blocks > 0 && block_size > 0 && block_size % 16 == 0, "block_size must be a multiple of 16");
            new (self) PyStep(shape_of(shape), cache_blocks, block_size, threads);
        }, "shape"_a, "cache_blocks"_a, "block_size"_a, "threads"_a)
        .def("set_layer", &PyStep::set_layer, "index"_a, "weights"_a)
        .def("set_ends", &PyStep::set_ends, "weights"_a)
        .def("add_update", &PyStep::add_update, "adapter"_a, "layer"_a, "product"_a, "index"_a, "a"_a, "b"_a)
        .def("remove_adapter", &PyStep::remove_adapter, "adapter"_a)
        .def("run", &PyStep::run, "tokens"_a, "starts"_a, "tables"_a, "logits"_a, "adapters"_a, "hidden"_a, "routing"_a, "block_size"_a,
             "threads"_a, "(logits [rows, V], hidden [rows, D] or None, routing [tokens, MoE layers, K] or None)")
        .def("draft", &PyStep::draft, "tokens"_a, "starts"_a, "tables"_a, "counts"_a, "block_size"_a, "threads"_a,
             "Greedy drafts of the multi-token prediction module, counts[i] tokens for sequence i.")
        .def_prop_ro("max_threads", [](const PyStep& s) { return s.step.max_threads(); })
        .def_prop_ro("cache_block_bytes", [](const PyStep& s) { return s.step.cache_block_bytes(); })
        .def("cache_block", [](nb::handle_t<PyStep> self, int block) {
            PyStep& s = nb::cast<PyStep&>(self);
            need(block >= 0 && block < s.step.cache_blocks(), "no such cache block");
            size_t shape[1] = {s.step.cache_block_bytes()};
            return nb::ndarray<uint8_t, nb::numpy, nb::ndim<1>>(s.step.cache_block(block), 1, shape, self);
        }, "block"_a, "The bytes of a cache block, all layers, as a numpy array over the cache itself.");

    using Doubles = nb::ndarray<const double, nb::numpy, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
    m.def("choose", [](const Vector& scores, double temperature, long long top_k, double top_p, double min_p, double number) {
        return choose(scores.data(), int(scores.size()), temperature, top_k, top_p, min_p, number);
    }, "scores"_a, "temperature"_a, "top_k"_a, "top_p"_a, "min_p"_a, "number"_a);
    m.def("choose", [](const Doubles& scores, double temperature, long long top_k, double top_p, double min_p, double number) {
        return choose(scores.data(), int(scores.size()), temperature, top_k, top_p, min_p, number);
    }, "scores"_a, "temperature"_a, "top_k"_a, "top_p"_a, "min_p"_a, "number"_a,
       "The token that the uniform `number` falls on; -1 when none can follow.");
    m.def("log_sum_exp", [](const Vector& logits) { return log_sum_exp(logits.data(), int(logits.size())); }, "logits"_a);
    m.def("likeliest", [](const Vector& logits, int count) { return likeliest(logits.data(), int(logits.size()), count); }, "logits"_a, "count"_a,
          "Ids of the highest, best first, equal ones by id.");
}
