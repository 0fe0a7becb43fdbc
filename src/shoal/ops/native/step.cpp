#include "step.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <new>

namespace shoal {

namespace {

// Up to so many tokens every thread norms and quantises all of them for itself: that is cheaper than to meet.
constexpr int kOwnTokens = 4;
// Of MLA's inner norms: a constant in the released models, whatever the configuration says.
constexpr float kLatentEps = 1e-6f;

struct Range {  // rows of one adapter
    int adapter, begin, end;
};

uint64_t key(int layer, Product product, int index) {
    return uint64_t(layer) << 32 | uint64_t(product) << 24 | uint64_t(index);
}

}  // namespace

void Scratch::release() {
    if (size_ >= kHuge) {
        huge_free(memory_, size_);
    } else {
        std::free(memory_);
    }
    memory_ = nullptr;
    size_ = 0;
}

void* Scratch::bytes(size_t size) {
    if (size > size_) {
        release();
        size_t wanted = (size + size / 2 + 4096) / 64 * 64;
        memory_ = wanted >= kHuge ? huge_alloc(wanted) : std::aligned_alloc(64, wanted);
        if (!memory_) throw std::bad_alloc();
        size_ = wanted;
    }
    return memory_;
}

Step::Step(Shape shape, int cache_blocks, int block_size, int max_threads)
    : layers(size_t(shape.layers + shape.mtp)), shape_(std::move(shape)), pool_(max_threads), cache_blocks_(cache_blocks), block_size_(block_size) {
    KvCache one = cache(0);
    size_t row = layers.size() * size_t(one.kv_heads) * size_t(one.k_dim + one.v_dim) + size_t(shape_.mtp) * size_t(shape_.hidden);
    cache_block_bytes_ = size_t(block_size_) * row * sizeof(half);
    cache_ = static_cast<uint8_t*>(huge_alloc(cache_block_bytes_ * size_t(cache_blocks)));
    if (!cache_) throw std::bad_alloc();
    for (int i = 0; i < pool_.max_threads(); i++) own_.push_back(std::make_unique<Scratch[]>(kSlots));
}

Step::~Step() { huge_free(cache_, cache_block_bytes_ * size_t(cache_blocks_)); }

int Step::moe_layers() const {
    return int(std::count_if(layers.begin(), layers.begin() + shape_.layers, [](const Layer& l) { return l.experts.exists(); }));
}

KvCache Step::cache(int layer) const {
    KvCache c;
    c.block_size = block_size_;
    c.kv_heads = shape_.latent ? 1 : shape_.kv_heads;
    c.k_dim = shape_.latent ? shape_.latent + shape_.rope : shape_.head_dim;
    c.v_dim = shape_.latent ? shape_.latent : shape_.head_dim;
    ptrdiff_t keys = ptrdiff_t(c.kv_heads) * block_size_ * c.k_dim, values = ptrdiff_t(c.kv_heads) * block_size_ * c.v_dim;
    c.k = reinterpret_cast<half*>(cache_) + layer * (keys + values);
    c.v = c.k + keys;
    c.k_stride = c.v_stride = ptrdiff_t(cache_block_bytes_ / sizeof(half));
    return c;
}

KvCache Step::hidden_cache() const {
    KvCache c = cache(int(layers.size()));  // where another layer's keys would be
    c.v = c.k;
    c.k = nullptr;
    c.kv_heads = 1, c.k_dim = 0, c.v_dim = shape_.hidden;
    return c;
}

void Step::add_update(int adapter, int layer, Product product, int index, LowRank update) {
    updates_[adapter][key(layer, product, index)] = update;
}

void Step::remove_adapter(int adapter) { updates_.erase(adapter); }

const LowRank* Step::update(int adapter, int layer, Product product, int index) const {
    auto of = updates_.find(adapter);
    if (of == updates_.end()) return nullptr;
    auto found = of->second.find(key(layer, product, index));
    return found == of->second.end() ? nullptr : &found->second;
}

// One call of run(): what all threads share, and the parts of the pass, which every thread runs for its own share of
// rows, tokens or heads. A barrier stands wherever one thread reads what another has written.
class Forward {
public:
    Forward(Step& step, const std::vector<Sequence>& batch, Results results, bool drafts = false);
    void operator()(Worker& w);

private:
    enum Slot {
        Residual, In, Angles, Rotated, AttentionOut, Projected, Normed, Input, HeadInput, GateUp, Hidden, HiddenInput, SharedInput, SharedOut,
        Scores, Gathered, GatheredFloats, LowRankInner, LowRankOuter, Joined, Count
    };
    static_assert(Count <= kSlots);

    struct Cut {  // query pairs first .. first + count of a key head of a sequence
        int sequence, kv_head, first, count;
    };
    struct Token {
        int sequence, position;
    };

    std::vector<Cut> cut_attention(const Worker& w) const;
    void begin(Worker& w);
    void join(Worker& w, const Layer& l);
    void gqa(Worker& w, const Layer& l, int layer);
    void mla(Worker& w, const Layer& l, int layer);
    void attend(Worker& w, int layer, const float* q, int key_dim, float* out, int value_dim);
    void dense(Worker& w, const Layer& l, int layer);
    void moe(Worker& w, const Layer& l, int layer);
    void choose(float* scores, const float* bias, int32_t* ids, float* weights) const;
    void keep_hidden(Worker& w, const float* norm);
    void end(Worker& w, const float* norm);

    Activations prepare(Worker& w, Slot slot, Slot floats, const float* x, ptrdiff_t ldx, int rows, int cols, const float* norm, float eps,
                        bool quantised, const int* pick = nullptr);
    void linear(Worker& w, const Linear& l, const Activations& x, int rows, float* y, ptrdiff_t ldy, int layer, Product product);
    void gate_up(Worker& w, const Matrix& m, const Activations& x, int rows, float* gu, float* hidden, int layer, Product product,
                 int index, const std::vector<Range>& ranges);
    void updated(Worker& w, const Matrix& m, const Activations& x, int rows, float* y, ptrdiff_t ldy, int begin, int end, int layer,
                 Product product, int index, const std::vector<Range>& ranges);
    void add_residual(Worker& w, int rows, const float* y, ptrdiff_t ldy);

    float* shared(Slot slot) { return static_cast<float*>(s_.shared_[slot].bytes(0)); }
    Scratch& own(const Worker& w, Slot slot) { return s_.own_[size_t(w.index)][slot]; }

    Step& s_;
    const Shape& shape_;
    const Kernels& k_;
    const std::vector<Sequence>& batch_;
    Results results_;
    bool drafts_;  // the MTP module instead of the layers
    int tokens_ = 0, moe_layers_ = 0;
    std::vector<int> moe_place_;  // of each layer among those with experts
    std::vector<Token> token_;
    std::vector<int> first_;   // first token of each sequence
    std::vector<int> wanted_;  // tokens whose logits are wanted
    std::vector<Range> ranges_, wanted_ranges_;
    std::vector<std::vector<Cut>> cuts_;
};

Forward::Forward(Step& step, const std::vector<Sequence>& batch, Results results, bool drafts)
    : s_(step), shape_(step.shape_), k_(kernels()), batch_(batch), results_(results), drafts_(drafts) {
    for (const Layer& l : step.layers) {
        moe_place_.push_back(moe_layers_);
        moe_layers_ += l.experts.exists();
    }
    for (int i = 0; i < int(batch.size()); i++) {
        const Sequence& sequence = batch[size_t(i)];
        int count = int(sequence.tokens.size());
        first_.push_back(tokens_);
        for (int j = 0; j < count; j++) token_.push_back({i, sequence.start + j});
        tokens_ += count;
        int rows = int(wanted_.size());
        for (int j = count - sequence.logits; j < count; j++) wanted_.push_back(first_.back() + j);
        if (sequence.adapter >= 0) {
            ranges_.push_back({sequence.adapter, first_.back(), tokens_});
            wanted_ranges_.push_back({sequence.adapter, rows, int(wanted_.size())});
        }
    }
    cuts_.resize(size_t(step.max_threads()));

    // Memory that threads share must not move while they run: all of it is sized here.
    const Shape& p = shape_;
    size_t tokens = size_t(tokens_), in = 0, attention = 0, rotated = 0, input = 0, gate = 0, hidden = 0, hidden_acts = 0, shared_acts = 0;
    size_t slots = tokens * size_t(std::max(1, p.experts_per_token));
    auto acts = [](size_t rows, int cols) { return activation_bytes(int(rows), cols); };
    for (const Layer& l : s_.layers) {
        in = std::max(in, size_t(l.in.rows() + l.q_b.rows()));
        int out_cols = l.out.parts[0].cols;
        attention = std::max(attention, size_t(std::max(out_cols, p.heads * p.latent)));
        input = std::max({input, acts(tokens, p.hidden), acts(tokens, out_cols), acts(tokens, std::max(1, p.q_rank))});
        for (const Mlp* mlp : {&l.dense, &l.experts}) {
            if (!mlp->exists()) continue;
            size_t rows = mlp == &l.experts ? slots : tokens;
            size_t wide = size_t(mlp->gate_up.first.rows);
            gate = std::max(gate, rows * wide);
            hidden = std::max(hidden, rows * wide / 2);
            hidden_acts = std::max(hidden_acts, acts(rows, mlp->down.first.cols));
            shared_acts = std::max(shared_acts, acts(tokens, mlp->down.first.cols));
        }
    }
    if (p.latent) {
        rotated = size_t(p.heads) * size_t(p.latent + p.rope);
    }
    size_t width = size_t(p.hidden);
    if (drafts_) {
        input = std::max(input, acts(tokens, 2 * p.hidden));
        s_.shared_[Joined].floats(tokens * 2 * width);
    }
    s_.shared_[Residual].floats(tokens * width);
    s_.shared_[In].floats(tokens * in);
    s_.shared_[Angles].floats(tokens * size_t(p.rope));
    s_.shared_[Rotated].floats(tokens * rotated);
    s_.shared_[AttentionOut].floats(tokens * attention * (p.latent ? 2 : 1));
    s_.shared_[Projected].floats(std::max(tokens, moe_layers_ ? slots : 0) * width);
    s_.shared_[Normed].floats(tokens * width);
    s_.shared_[Input].bytes(input);
    // With experts, the shared network's part stands behind theirs.
    s_.shared_[GateUp].floats((moe_layers_ ? 2 : 1) * gate);
    s_.shared_[Hidden].floats((moe_layers_ ? 2 : 1) * hidden);
    s_.shared_[HiddenInput].bytes(hidden_acts);
    if (!moe_layers_) return;
    s_.shared_[Scores].floats(tokens * size_t(p.experts) + 2 * slots);
    s_.shared_[Gathered].bytes(acts(slots, p.hidden));
    s_.shared_[GatheredFloats].floats(slots * width);
    s_.shared_[SharedInput].bytes(shared_acts);
    s_.shared_[SharedOut].floats(tokens * width);
}

void Forward::operator()(Worker& w) {
    begin(w);
    const int first = drafts_ ? shape_.layers : 0, last = drafts_ ? first + 1 : shape_.layers;
    if (drafts_) join(w, s_.layers[size_t(first)]);
    for (int layer = first; layer < last; layer++) {
        const Layer& l = s_.layers[size_t(layer)];
        if (shape_.latent) {
            mla(w, l, layer);
        } else {
            gqa(w, l, layer);
        }
        if (l.experts.exists()) {
            moe(w, l, layer);
        } else {
            dense(w, l, layer);
        }
    }
    const float* norm = drafts_ ? s_.layers[size_t(first)].output_norm : s_.final_norm;
    if (shape_.mtp) keep_hidden(w, norm);
    end(w, norm);
}

// Embeddings, and the angles of every position.
void Forward::begin(Worker& w) {
    int pairs = shape_.rope / 2;
    for (int t = w.begin(tokens_); t < w.end(tokens_); t++) {
        auto [sequence, position] = token_[size_t(t)];
        int32_t id = batch_[size_t(sequence)].tokens[size_t(t - first_[size_t(sequence)])];
        unpack_row(s_.embedding, id, shared(Residual) + ptrdiff_t(t) * shape_.hidden);
        float* angles = shared(Angles) + ptrdiff_t(t) * shape_.rope;
        for (int i = 0; i < pairs; i++) {
            float angle = float(position) * shape_.frequencies[size_t(i)];
            angles[i] = std::cos(angle) * shape_.rope_factor;
            angles[pairs + i] = std::sin(angle) * shape_.rope_factor;
        }
    }
    cuts_[size_t(w.index)] = cut_attention(w);
    w.barrier();
}

// The MTP module's input (DeepSeek-V3, section 2.2), the embedding first, as released weights have it.
void Forward::join(Worker& w, const Layer& l) {
    const int width = shape_.hidden;
    const KvCache hidden = s_.hidden_cache();
    for (int t = w.begin(tokens_); t < w.end(tokens_); t++) {
        auto [sequence, position] = token_[size_t(t)];
        const int32_t block = batch_[size_t(sequence)].table[size_t(position / hidden.block_size)];
        const half* kept = hidden.v + block * hidden.v_block() + ptrdiff_t(position % hidden.block_size) * width;
        float* row = shared(Joined) + ptrdiff_t(t) * 2 * width;
        k_.rmsnorm(shared(Residual) + ptrdiff_t(t) * width, l.embedding_norm, shape_.eps, width, row);
        for (int d = 0; d < width; d++) row[width + d] = from_half(kept[d]);
        k_.rmsnorm(row + width, l.hidden_norm, shape_.eps, width, row + width);
    }
    w.barrier();
    Activations x = prepare(w, Input, Normed, shared(Joined), 2 * width, tokens_, 2 * width, nullptr, 0, is_quantised(l.join.format));
    k_.matmul(l.join, x, tokens_, shared(Residual), width, w.begin(l.join.blocks()), w.end(l.join.blocks()));
    w.barrier();
}

// The normed hidden states into the cache, for the MTP module to read: of every position, or, when it drafts itself, of
// its last one as that of the next.
void Forward::keep_hidden(Worker& w, const float* norm) {
    const int rows = drafts_ ? int(wanted_.size()) : tokens_;
    const KvCache hidden = s_.hidden_cache();
    float* normed = own(w, Normed).floats(size_t(shape_.hidden));
    for (int i = w.begin(rows); i < w.end(rows); i++) {
        const int t = drafts_ ? wanted_[size_t(i)] : i;
        auto [sequence, position] = token_[size_t(t)];
        const std::vector<int32_t>& table = batch_[size_t(sequence)].table;
        position += drafts_;
        if (position >= int(table.size()) * hidden.block_size) continue;
        k_.rmsnorm(shared(Residual) + ptrdiff_t(t) * shape_.hidden, norm, shape_.eps, shape_.hidden, normed);
        k_.store(hidden, table.data(), position, nullptr, normed);
    }
}

// The inputs of a product: rows of x (those picked, else all), normed where there is a norm, quantised where its weights
// are. `slot` takes the integers, `floats` what the norm gives. Ends with the rows ready for this thread.
Activations Forward::prepare(Worker& w, Slot slot, Slot floats, const float* x, ptrdiff_t ldx, int rows, int cols, const float* norm,
                             float eps, bool quantised, const int* pick) {
    bool alone = rows <= kOwnTokens || w.threads == 1;
    void* memory = alone ? own(w, slot).bytes(activation_bytes(rows, cols)) : s_.shared_[slot].bytes(0);
    Activations into = make_activations(memory, rows, cols);
    int first = alone ? 0 : w.begin(rows), last = alone ? rows : w.end(rows);
    if (norm) {
        float* normed = alone ? own(w, floats).floats(size_t(rows) * size_t(cols)) : shared(floats);
        for (int i = first; i < last; i++)
            k_.rmsnorm(x + (pick ? pick[i] : i) * ldx, norm, eps, cols, normed + ptrdiff_t(i) * cols);
        x = normed;
        ldx = cols;
    }
    into.x = x;
    into.ldx = ldx;
    if (quantised && first < last) k_.quantise(x, ldx, into, first, last);
    if (!alone) w.barrier();
    return into;
}

// y = w x for the row blocks begin .. end, with the low-rank updates of the rows that have an adapter.
void Forward::updated(Worker& w, const Matrix& m, const Activations& x, int rows, float* y, ptrdiff_t ldy, int begin, int end, int layer,
                      Product product, int index, const std::vector<Range>& ranges) {
    if (begin == end || rows == 0) return;
    k_.matmul(m, x, rows, y, ldy, begin, end);
    int from = begin * kRows, count = std::min(end * kRows, m.rows) - from;
    for (const Range& range : ranges) {
        const LowRank* update = s_.update(range.adapter, layer, product, index);
        if (!update || range.begin == range.end) continue;
        int tokens = range.end - range.begin, rank = update->a.rows;
        float* inner = own(w, LowRankInner).floats(size_t(tokens) * size_t(rank));
        k_.matmul(update->a, x.from(range.begin), tokens, inner, rank, 0, update->a.blocks());
        Activations low;
        low.x = inner, low.ldx = rank, low.cols = rank;
        float* outer = own(w, LowRankOuter).floats(size_t(tokens) * size_t(m.rows));
        k_.matmul(update->b, low, tokens, outer, m.rows, begin, end);
        for (int t = 0; t < tokens; t++)
            k_.add(y + (range.begin + t) * ldy + from, outer + ptrdiff_t(t) * m.rows + from, count);
    }
}

void Forward::linear(Worker& w, const Linear& l, const Activations& x, int rows, float* y, ptrdiff_t ldy, int layer, Product product) {
    int at = 0;
    for (size_t i = 0; i < l.parts.size(); i++) {
        const Matrix& part = l.parts[i];
        int begin = w.begin(part.blocks()), end = w.end(part.blocks());
        updated(w, part, x, rows, y + at, ldy, begin, end, layer, product, int(i), ranges_);
        int from = begin * kRows, count = std::min(end * kRows, part.rows) - from;
        if (l.bias && count > 0)
            for (int t = 0; t < rows; t++) k_.add(y + t * ldy + at + from, l.bias + at + from, count);
        at += part.rows;
    }
}

// The residual's own columns += y: the columns that `linear` gave this thread for a matrix of D rows in one part.
void Forward::add_residual(Worker& w, int rows, const float* y, ptrdiff_t ldy) {
    int blocks = (shape_.hidden + kRows - 1) / kRows;
    int from = w.begin(blocks) * kRows, count = std::min(w.end(blocks) * kRows, shape_.hidden) - from;
    if (count <= 0) return;
    for (int t = 0; t < rows; t++) k_.add(shared(Residual) + ptrdiff_t(t) * shape_.hidden + from, y + t * ldy + from, count);
}

// A contiguous share of all (sequence, key head, query, head of the group), about as much work as any other thread's.
std::vector<Forward::Cut> Forward::cut_attention(const Worker& w) const {
    int kv_heads = shape_.latent ? 1 : shape_.kv_heads, group = shape_.heads / kv_heads;
    constexpr double kFixed = 16;  // positions' worth of work that every query takes
    double total = 0;
    for (const Sequence& sequence : batch_) {
        double count = double(sequence.tokens.size());
        total += shape_.heads * count * (sequence.start + kFixed + (count + 1) / 2);
    }
    double low = total * w.index / w.threads, high = total * (w.index + 1) / w.threads, done = 0;
    std::vector<Cut> cuts;
    for (int i = 0; i < int(batch_.size()); i++) {
        int queries = int(batch_[size_t(i)].tokens.size());
        for (int h = 0; h < kv_heads; h++) {
            int first = -1, end = 0;
            for (int q = 0; q < queries; q++) {
                double cost = batch_[size_t(i)].start + q + 1 + kFixed;
                for (int g = 0; g < group; g++) {
                    double middle = done + cost / 2;
                    done += cost;
                    if (middle < low || middle >= high) continue;
                    if (first < 0) first = q * group + g;
                    end = q * group + g + 1;
                }
            }
            if (first >= 0) cuts.push_back({i, h, first, end - first});
        }
    }
    return cuts;
}

void Forward::attend(Worker& w, int layer, const float* q, int key_dim, float* out, int value_dim) {
    KvCache cache = s_.cache(layer);
    for (const Cut& cut : cuts_[size_t(w.index)]) {
        const Sequence& sequence = batch_[size_t(cut.sequence)];
        AttentionTask task;
        ptrdiff_t first = first_[size_t(cut.sequence)];
        // GQA: queries stand in the rows of the input product, which also hold keys and values.
        task.ldq = shape_.latent ? ptrdiff_t(shape_.heads) * key_dim : ptrdiff_t(shape_.heads + 2 * shape_.kv_heads) * key_dim;
        task.ldo = ptrdiff_t(shape_.heads) * value_dim;
        task.q = q + first * task.ldq;
        task.out = out + first * task.ldo;
        task.table = sequence.table.data();
        task.start = sequence.start;
        task.queries = int(sequence.tokens.size());
        task.heads = shape_.heads;
        task.scale = shape_.scale;
        k_.attention(cache, task, cut.kv_head, cut.first, cut.count);
    }
}

void Forward::gqa(Worker& w, const Layer& l, int layer) {
    const Shape& p = shape_;
    int size = p.head_dim;
    ptrdiff_t ld = ptrdiff_t(p.heads + 2 * p.kv_heads) * size;
    Activations x = prepare(w, Input, Normed, shared(Residual), p.hidden, tokens_, p.hidden, l.input_norm, p.eps, l.in.quantised());
    float* qkv = shared(In);
    linear(w, l.in, x, tokens_, qkv, ld, layer, Product::In);
    w.barrier();
    KvCache cache = s_.cache(layer);
    for (int t = w.begin(tokens_); t < w.end(tokens_); t++) {
        auto [sequence, position] = token_[size_t(t)];
        float *q = qkv + t * ld, *keys = q + ptrdiff_t(p.heads) * size, *values = keys + ptrdiff_t(p.kv_heads) * size;
        const float *cosines = shared(Angles) + ptrdiff_t(t) * p.rope, *sines = cosines + p.rope / 2;
        if (l.q_norm) {
            for (int h = 0; h < p.heads; h++) k_.rmsnorm(q + h * size, l.q_norm, p.eps, size, q + h * size);
            for (int h = 0; h < p.kv_heads; h++) k_.rmsnorm(keys + h * size, l.k_norm, p.eps, size, keys + h * size);
        }
        k_.rope(q, p.heads + p.kv_heads, size, p.rope, cosines, sines, p.interleaved);
        k_.store(cache, batch_[size_t(sequence)].table.data(), position, keys, values);
    }
    w.barrier();
    float* out = shared(AttentionOut);
    attend(w, layer, qkv, size, out, size);
    w.barrier();
    Activations a = prepare(w, Input, Normed, out, ptrdiff_t(p.heads) * size, tokens_, p.heads * size, nullptr, 0, l.out.quantised());
    linear(w, l.out, a, tokens_, shared(Projected), p.hidden, layer, Product::Out);
    add_residual(w, tokens_, shared(Projected), p.hidden);
    w.barrier();
}

// Absorbed form (DeepSeek-V2, section 2.1): the key up-projection is applied to the query, the value up-projection behind
// the softmax, so that all heads read the latent itself and the cache holds C + P numbers per position.
void Forward::mla(Worker& w, const Layer& l, int layer) {
    const Shape& p = shape_;
    int query = p.nope + p.rope, entry = p.latent + p.rope, in_rows = l.in.rows();
    Activations x = prepare(w, Input, Normed, shared(Residual), p.hidden, tokens_, p.hidden, l.input_norm, p.eps, l.in.quantised());
    float* in = shared(In);
    linear(w, l.in, x, tokens_, in, in_rows, layer, Product::In);
    w.barrier();
    float *q = in, *compressed = in + (in_rows - entry);
    ptrdiff_t ldq = in_rows;
    if (p.q_rank) {
        Activations low = prepare(w, Input, Normed, in, in_rows, tokens_, p.q_rank, l.q_a_norm, kLatentEps, l.q_b.quantised());
        q = in + ptrdiff_t(tokens_) * in_rows;
        ldq = l.q_b.rows();
        linear(w, l.q_b, low, tokens_, q, ldq, layer, Product::QB);
        w.barrier();
    }
    KvCache cache = s_.cache(layer);
    float *rotated = shared(Rotated), *latents = shared(AttentionOut), *values = latents + ptrdiff_t(tokens_) * p.heads * p.latent;
    ptrdiff_t ldr = ptrdiff_t(p.heads) * entry, ldl = ptrdiff_t(p.heads) * p.latent, ldv = ptrdiff_t(p.heads) * p.value;
    auto angles = [&](int t) { return shared(Angles) + ptrdiff_t(t) * p.rope; };
    for (int t = w.begin(tokens_); t < w.end(tokens_); t++) {
        auto [sequence, position] = token_[size_t(t)];
        float* latent = compressed + ptrdiff_t(t) * in_rows;
        k_.rmsnorm(latent, l.latent_norm, kLatentEps, p.latent, latent);
        k_.rope(latent + p.latent, 1, p.rope, p.rope, angles(t), angles(t) + p.rope / 2, p.interleaved);
        k_.store(cache, batch_[size_t(sequence)].table.data(), position, latent, latent);
    }
    // A head's own product, of the columns at `from` of every token into those at `to`.
    auto head_product = [&](const Stack& stack, int head, const float* from, ptrdiff_t ldx, float* to, ptrdiff_t ldy, Product product) {
        Matrix m = stack.at(head);
        Activations x = make_activations(own(w, HeadInput).bytes(activation_bytes(tokens_, m.cols)), tokens_, m.cols);
        x.x = from, x.ldx = ldx;
        if (is_quantised(m.format)) k_.quantise(from, ldx, x, 0, tokens_);
        updated(w, m, x, tokens_, to, ldy, 0, m.blocks(), layer, product, head, ranges_);
    };
    for (int h = w.begin(p.heads); h < w.end(p.heads); h++) {
        head_product(l.k_up, h, q + h * query, ldq, rotated + h * entry, ldr, Product::KUp);
        for (int t = 0; t < tokens_; t++) {
            float* part = rotated + t * ldr + h * entry + p.latent;
            std::memcpy(part, q + t * ldq + h * query + p.nope, size_t(p.rope) * sizeof(float));
            k_.rope(part, 1, p.rope, p.rope, angles(t), angles(t) + p.rope / 2, p.interleaved);
        }
    }
    w.barrier();
    attend(w, layer, rotated, entry, latents, p.latent);
    w.barrier();
    for (int h = w.begin(p.heads); h < w.end(p.heads); h++)
        head_product(l.v_up, h, latents + h * p.latent, ldl, values + h * p.value, ldv, Product::VUp);
    w.barrier();
    Activations a = prepare(w, Input, Normed, values, ldv, tokens_, p.heads * p.value, nullptr, 0, l.out.quantised());
    linear(w, l.out, a, tokens_, shared(Projected), p.hidden, layer, Product::Out);
    add_residual(w, tokens_, shared(Projected), p.hidden);
    w.barrier();
}

// This thread's columns of hidden = silu(gate x) * up x.
void Forward::gate_up(Worker& w, const Matrix& m, const Activations& x, int rows, float* gu, float* hidden, int layer, Product product,
                      int index, const std::vector<Range>& ranges) {
    int pairs = m.blocks() / 2, begin = w.begin(pairs), end = w.end(pairs);
    if (rows > 16 && ranges.empty()) {  // a few blocks at a time, so that what lies between stays in the nearest cache
        constexpr int kPairs = 4, kWide = 2 * kPairs * kRows;
        float* part = own(w, GateUp).floats(size_t(rows) * kWide);
        for (int p = begin; p < end; p += kPairs) {
            int n = std::min(kPairs, end - p);
            k_.matmul(m, x, rows, part - 2 * p * kRows, kWide, 2 * p, 2 * (p + n));
            for (int t = 0; t < rows; t++)
                k_.silu_mul_blocks(part + ptrdiff_t(t) * kWide, n * kRows, hidden + ptrdiff_t(t) * (m.rows / 2) + p * kRows);
        }
        return;
    }
    updated(w, m, x, rows, gu, m.rows, 2 * begin, 2 * end, layer, product, index, ranges);
    int width = m.rows / 2, from = begin * kRows, count = (end - begin) * kRows;
    if (count == 0) return;
    for (int t = 0; t < rows; t++) k_.silu_mul_blocks(gu + ptrdiff_t(t) * m.rows + 2 * from, count, hidden + ptrdiff_t(t) * width + from);
}

void Forward::dense(Worker& w, const Layer& l, int layer) {
    const Matrix &wide = l.dense.gate_up.first, &down = l.dense.down.first;
    Activations x = prepare(w, Input, Normed, shared(Residual), shape_.hidden, tokens_, shape_.hidden, l.post_norm, shape_.eps,
                            is_quantised(wide.format));
    gate_up(w, wide, x, tokens_, shared(GateUp), shared(Hidden), layer, Product::GateUp, 0, ranges_);
    w.barrier();
    Activations h = prepare(w, HiddenInput, Normed, shared(Hidden), wide.rows / 2, tokens_, down.cols, nullptr, 0, is_quantised(down.format));
    updated(w, down, h, tokens_, shared(Projected), shape_.hidden, w.begin(down.blocks()), w.end(down.blocks()), layer, Product::Down, 0, ranges_);
    add_residual(w, tokens_, shared(Projected), shape_.hidden);
    w.barrier();
}

// The experts of one token, ascending, and their weights (DeepSeek-V3, section 2.1.2; V2's softmax alike), from the
// router's logits, which are overwritten by the scores.
void Forward::choose(float* scores, const float* bias, int32_t* ids, float* weights) const {
    const Shape& p = shape_;
    int n = p.experts, k = p.experts_per_token;
    if (p.sigmoid) {
        for (int e = 0; e < n; e++) scores[e] = 1.0f / (1.0f + std::exp(-scores[e]));
    } else {
        k_.softmax(scores, n);
    }
    std::vector<float> choice(scores, scores + n);
    if (bias)
        for (int e = 0; e < n; e++) choice[size_t(e)] += bias[e];
    // The `count` largest, the first of equals, marked in `taken`.
    auto best = [](const std::vector<float>& values, int count, std::vector<char>& taken) {
        taken.assign(values.size(), 0);
        for (int i = 0; i < count; i++) {
            int top = -1;
            for (int j = 0; j < int(values.size()); j++)
                if (!taken[size_t(j)] && (top < 0 || values[size_t(j)] > values[size_t(top)])) top = j;
            taken[size_t(top)] = 1;
        }
    };
    std::vector<char> taken;
    if (p.kept_groups < p.groups) {
        int size = n / p.groups;
        std::vector<float> group(size_t(p.groups));
        for (int g = 0; g < p.groups; g++) {
            float first = -INFINITY, second = -INFINITY;
            for (int e = g * size; e < (g + 1) * size; e++) {
                float value = choice[size_t(e)];
                if (value > first) std::swap(value, first);
                second = std::max(second, value);
            }
            group[size_t(g)] = p.two_best ? first + second : first;
        }
        best(group, p.kept_groups, taken);
        for (int e = 0; e < n; e++)
            if (!taken[size_t(e / size)]) choice[size_t(e)] = -INFINITY;
    }
    best(choice, k, taken);
    float sum = 1e-20f;
    for (int e = 0, i = 0; e < n && i < k; e++) {
        if (!taken[size_t(e)]) continue;
        ids[i] = e;
        weights[i] = scores[e];
        sum += scores[e];
        i++;
    }
    for (int i = 0; i < k; i++) weights[i] = (p.normalise ? weights[i] / sum : weights[i]) * p.routed_scale;
}

// Tokens are sorted by expert, so that each expert is one small product; a token's outputs are added in the order of
// the experts' numbers, whatever else is in the batch.
void Forward::moe(Worker& w, const Layer& l, int layer) {
    const Shape& p = shape_;
    const int k = p.experts_per_token, slots = tokens_ * k, hidden = p.hidden;
    const Matrix &wide = l.experts.gate_up.first, &down = l.experts.down.first;
    const int width = wide.rows / 2;
    Activations x = prepare(w, Input, Normed, shared(Residual), hidden, tokens_, hidden, l.post_norm, p.eps, is_quantised(wide.format));

    float* scores = shared(Scores);
    k_.matmul(l.router, x, tokens_, scores, p.experts, w.begin(l.router.blocks()), w.end(l.router.blocks()));
    w.barrier();
    // Few tokens: every thread chooses for itself, on a copy of the scores.
    bool alone = tokens_ <= kOwnTokens || w.threads == 1;
    float* weights = scores + ptrdiff_t(tokens_) * p.experts;
    if (alone) {
        float* copy = own(w, Scores).floats(size_t(tokens_) * size_t(p.experts) + 2 * size_t(slots));
        std::memcpy(copy, scores, size_t(tokens_) * size_t(p.experts) * sizeof(float));
        scores = copy;
        weights = copy + ptrdiff_t(tokens_) * p.experts;
    }
    int32_t* ids = reinterpret_cast<int32_t*>(weights + slots);
    for (int t = alone ? 0 : w.begin(tokens_); t < (alone ? tokens_ : w.end(tokens_)); t++)
        choose(scores + ptrdiff_t(t) * p.experts, l.router_bias, ids + t * k, weights + t * k);
    if (!alone) w.barrier();
    if (results_.routing) {
        int place = moe_place_[size_t(layer)], places = s_.moe_layers();
        for (int t = w.begin(tokens_); t < w.end(tokens_); t++)
            std::memcpy(results_.routing + (ptrdiff_t(t) * places + place) * k, ids + t * k, size_t(k) * sizeof(int32_t));
    }

    // Slots: the (token, expert) pairs by expert, tokens ascending.
    std::vector<int> begin(size_t(p.experts) + 1), slot_of(size_t(slots), 0), token_of(size_t(slots), 0);
    for (int i = 0; i < slots; i++) begin[size_t(ids[i]) + 1]++;
    for (int e = 0; e < p.experts; e++) begin[size_t(e) + 1] += begin[size_t(e)];
    std::vector<int> next(begin.begin(), begin.end() - 1);
    for (int i = 0; i < slots; i++) {
        int slot = next[size_t(ids[i])]++;
        slot_of[size_t(i)] = slot;
        token_of[size_t(slot)] = i / k;
    }
    std::vector<int> used;
    for (int e = 0; e < p.experts; e++)
        if (begin[size_t(e)] < begin[size_t(e) + 1]) used.push_back(e);
    Activations in = x;
    if (tokens_ > 1) {
        in = make_activations(s_.shared_[Gathered].bytes(0), slots, hidden);
        in.x = shared(GatheredFloats), in.ldx = hidden;
        int bytes = padded(hidden), groups = x.groups();
        for (int i = w.begin(slots); i < w.end(slots); i++) {
            Activations from = x.from(token_of[size_t(i)]), to = in.from(i);
            std::memcpy(const_cast<float*>(to.x), from.x, size_t(hidden) * sizeof(float));
            std::memcpy(to.q, from.q, size_t(bytes));
            std::memcpy(to.scale, from.scale, size_t(groups) * sizeof(float));
            std::memcpy(to.sum, from.sum, size_t(groups) * sizeof(int32_t));
            std::memcpy(to.bias, from.bias, size_t(groups) * sizeof(float));
        }
        w.barrier();
    }
    auto input = [&](int e) { return tokens_ > 1 ? in.from(begin[size_t(e)]) : x; };
    auto count = [&](int e) { return begin[size_t(e) + 1] - begin[size_t(e)]; };
    std::vector<std::vector<Range>> ranges(size_t(p.experts));
    if (!ranges_.empty()) {
        for (int e : used)
            for (int i = begin[size_t(e)]; i < begin[size_t(e) + 1]; i++)
                for (const Range& range : ranges_)
                    if (token_of[size_t(i)] >= range.begin && token_of[size_t(i)] < range.end)
                        ranges[size_t(e)].push_back({range.adapter, i - begin[size_t(e)], i - begin[size_t(e)] + 1});
    }

    float *gu = shared(GateUp), *inner = shared(Hidden), *y = shared(Projected);
    float *shared_gu = gu + ptrdiff_t(slots) * wide.rows, *shared_inner = inner + ptrdiff_t(slots) * width;
    for (int e : used) {
        ptrdiff_t slot = begin[size_t(e)];
        gate_up(w, l.experts.gate_up.at(e), input(e), count(e), gu + slot * wide.rows, inner + slot * width, layer, Product::ExpertGateUp, e,
                ranges[size_t(e)]);
    }
    if (l.dense.exists())
        gate_up(w, l.dense.gate_up.first, x, tokens_, shared_gu, shared_inner, layer, Product::GateUp, 0, ranges_);
    w.barrier();
    Activations h = prepare(w, HiddenInput, Normed, inner, width, slots, down.cols, nullptr, 0, is_quantised(down.format));
    int first = w.begin(down.blocks()), last = w.end(down.blocks());
    int from = first * kRows, columns = std::min(last * kRows, hidden) - from;
    if (l.dense.exists()) {
        const Matrix& shared_down = l.dense.down.first;
        Activations hs = prepare(w, SharedInput, Normed, shared_inner, l.dense.gate_up.first.rows / 2, tokens_, shared_down.cols, nullptr, 0,
                                 is_quantised(shared_down.format));
        updated(w, shared_down, hs, tokens_, shared(SharedOut), hidden, first, last, layer, Product::Down, 0, ranges_);
        add_residual(w, tokens_, shared(SharedOut), hidden);
    }
    for (int e : used) {
        int slot = begin[size_t(e)];
        updated(w, l.experts.down.at(e), h.from(slot), count(e), y + ptrdiff_t(slot) * hidden, hidden, first, last, layer, Product::ExpertDown,
                e, ranges[size_t(e)]);
    }
    if (columns > 0)
        for (int i = 0; i < slots; i++)
            k_.axpy(shared(Residual) + ptrdiff_t(i / k) * hidden + from, weights[i], y + ptrdiff_t(slot_of[size_t(i)]) * hidden + from, columns);
    w.barrier();
}

// The final norm and the head, for the rows that are wanted.
void Forward::end(Worker& w, const float* norm) {
    int rows = int(wanted_.size());
    if (rows == 0) return;
    Activations x = prepare(w, Input, Normed, shared(Residual), shape_.hidden, rows, shape_.hidden, norm, shape_.eps,
                            s_.head.quantised(), wanted_.data());
    if (results_.hidden)
        for (int i = w.begin(rows); i < w.end(rows); i++)
            std::memcpy(results_.hidden + ptrdiff_t(i) * shape_.hidden, x.x + i * x.ldx, size_t(shape_.hidden) * sizeof(float));
    int at = 0;
    for (size_t i = 0; i < s_.head.parts.size(); i++) {
        const Matrix& part = s_.head.parts[i];
        updated(w, part, x, rows, results_.logits + at, shape_.vocab, w.begin(part.blocks()), w.end(part.blocks()), shape_.layers,
                Product::Head, int(i), wanted_ranges_);
        at += part.rows;
    }
}

void Step::run(const std::vector<Sequence>& batch, Results results, int threads) {
    Forward forward(*this, batch, results);
    pool_.run(threads, [&](Worker& w) { forward(w); });
}

std::vector<std::vector<int32_t>> Step::draft(std::vector<Sequence> batch, const std::vector<int>& counts, int threads) {
    std::vector<std::vector<int32_t>> drafts(batch.size());
    std::vector<size_t> who(batch.size());
    std::vector<float> logits;
    for (size_t i = 0; i < batch.size(); i++) who[i] = i, batch[i].logits = counts[i] > 0;
    while (!batch.empty()) {
        logits.resize(batch.size() * size_t(shape_.vocab));
        Results results;
        results.logits = logits.data();
        Forward forward(*this, batch, results, true);
        pool_.run(threads, [&](Worker& w) { forward(w); });
        std::vector<Sequence> next;
        std::vector<size_t> next_who;
        const float* row = logits.data();
        for (size_t i = 0; i < batch.size(); i++) {
            if (!batch[i].logits) continue;
            std::vector<int32_t>& said = drafts[who[i]];
            said.push_back(kernels().argmax(row, shape_.vocab));
            row += shape_.vocab;
            if (int(said.size()) == counts[who[i]]) continue;
            next.push_back({{said.back()}, batch[i].table, batch[i].start + int(batch[i].tokens.size()), 1});
            next_who.push_back(who[i]);
        }
        batch = std::move(next);
        who = std::move(next_who);
    }
    return drafts;
}

}  // namespace shoal
