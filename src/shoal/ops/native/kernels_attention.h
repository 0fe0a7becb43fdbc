// Attention over the paged cache, for grouped queries and (with one key head) for MLA in absorbed form. Included by
// kernels_isa.cpp.
//
// A row is one query of one head. Positions are worked off in spans of 256: scores, their maximum, exponentials, their
// sum, weighted values. Spans are merged in ascending order: so a row's bits do not depend on which rows are
// computed with it, nor on whether spans were spread over threads.
#pragma once

#if defined(__AVX512F__)
constexpr int kRowsTogether = 12, kAccumulators = 24;  // rows that share each load of keys; sums that fit the registers
#elif defined(__AVX2__)
constexpr int kRowsTogether = 6, kAccumulators = 6;
#else
constexpr int kRowsTogether = 3, kAccumulators = 3;
#endif
// Vectors worked on at once for N rows: enough independent sums to keep the multipliers busy.
constexpr int abreast(int rows) { return kAccumulators / rows > 4 ? 4 : kAccumulators / rows < 1 ? 1 : kAccumulators / rows; }

// scores[r][16 p ...] of P tiles of 16 positions, N rows.
template <int N, int P> inline void score_tiles(const half* const* tile, int dim, const float* const* q, float scale, float* const* scores) {
    vf dot[N][P];
    for (int r = 0; r < N; r++)
        for (int p = 0; p < P; p++) dot[r][p] = set1(0.0f);
    for (int d = 0; d < dim; d++) {
        vf k[P];
        for (int p = 0; p < P; p++) k[p] = load_half(tile[p] + d * 16);
        for (int r = 0; r < N; r++) {
            vf x = set1(q[r][d]);
            for (int p = 0; p < P; p++) dot[r][p] = fma(k[p], x, dot[r][p]);
        }
    }
    for (int r = 0; r < N; r++)
        for (int p = 0; p < P; p++) store(scores[r] + 16 * p, mul(dot[r][p], set1(scale)));
}

// total[r][c] += sum over `count` positions of p[r][position] * v[position], C times 16 columns, N rows.
template <int N, int C> inline void value_columns(const half* v, int v_dim, int count, const float* const* p, vf (&total)[N][C], int columns) {
    for (int i = 0; i < count; i++) {
        const half* at = v + ptrdiff_t(i) * v_dim;
        vf x[C];
        if (columns == 16 * C) {
            for (int c = 0; c < C; c++) x[c] = load_half(at + 16 * c);
        } else {  // C is 1
            half part[16] = {};
            __builtin_memcpy(part, at, 2 * columns);
            x[0] = load_half(part);
        }
        for (int r = 0; r < N; r++) {
            vf weight = set1(p[r][i]);
            for (int c = 0; c < C; c++) total[r][c] = fma(x[c], weight, total[r][c]);
        }
    }
}

struct Span {  // positions first .. first + most of a sequence, for one key head
    const KvCache& c;
    const int32_t* table;
    int kv_head, first, most;
    const half* tile(int p) const {
        const int position = first + p, inner = position % c.block_size;
        return c.k + table[position / c.block_size] * c.k_block() + (ptrdiff_t(kv_head) * c.block_size + inner) * c.k_dim;
    }
    const half* value(int p) const {
        const int position = first + p, inner = position % c.block_size;
        return c.v + table[position / c.block_size] * c.v_block() + (ptrdiff_t(kv_head) * c.block_size + inner) * c.v_dim;
    }
};

template <int N, int P> void span_scores(const Span& s, int p, const float* const* q, float scale, float (*scores)[kSpan]) {
    for (; p + 16 * (P - 1) < s.most; p += 16 * P) {
        const half* tiles[P];
        float* to[N];
        for (int i = 0; i < P; i++) tiles[i] = s.tile(p + 16 * i);
        for (int r = 0; r < N; r++) to[r] = scores[r] + p;
        score_tiles<N, P>(tiles, s.c.k_dim, q, scale, to);
    }
    if constexpr (P > 1)
        if (p < s.most) span_scores<N, 1>(s, p, q, scale, scores);
}

template <int N, int C> void span_values(const Span& s, int column, const float (*weights)[kSpan], float* const* out) {
    for (; column + (C > 1 ? 16 * C : 1) <= s.c.v_dim; column += 16 * C) {
        const int columns = s.c.v_dim - column < 16 * C ? s.c.v_dim - column : 16 * C;
        vf total[N][C];
        for (int r = 0; r < N; r++)
            for (int c = 0; c < C; c++) total[r][c] = set1(0.0f);
        for (int p = 0; p < s.most;) {
            const int left = s.c.block_size - (s.first + p) % s.c.block_size, count = left < s.most - p ? left : s.most - p;
            const float* from[N];
            for (int r = 0; r < N; r++) from[r] = weights[r] + p;
            value_columns<N, C>(s.value(p) + column, s.c.v_dim, count, from, total, columns);
            p += count;
        }
        for (int r = 0; r < N; r++)
            for (int c = 0; c < C; c++) store_n(out[r] + column + 16 * c, total[r][c], C > 1 ? 16 : columns);
    }
    if constexpr (C > 1)
        if (column < s.c.v_dim) span_values<N, 1>(s, column, weights, out);
}

// N rows over one span. limit[r]: positions that row r sees, counted from the start of the span (may be <= 0).
// partial[r] = [v_dim] values, maximum, sum.
template <int N>
void span_rows(const KvCache& c, const int32_t* table, int kv_head, int span, const float* const* q, const int* limit, float scale,
               float* const* partial) {
    alignas(64) float scores[N][kSpan];
    int most = 0;
    for (int r = 0; r < N; r++) most = limit[r] > most ? limit[r] : most;
    const Span s{c, table, kv_head, span * kSpan, most};
    span_scores<N, abreast(N)>(s, 0, q, scale, scores);
    for (int r = 0; r < N; r++) {
        const int n = limit[r];
        float top = -__builtin_inff(), whole = 0;
        if (n > 0) {
            top = largest(scores[r], n);
            vf total = set1(0.0f);
            in_vectors(n, [&](int i, int k) {
                vf e = exp(sub(load_n(scores[r] + i, k), set1(top)));
                store_n(scores[r] + i, e, k);
                total = add(total, k == 16 ? e : load_part(scores[r] + i, k));
            });
            whole = sum(total);
        }
        for (int i = n > 0 ? n : 0; i < most; i++) scores[r][i] = 0;
        partial[r][c.v_dim] = top;
        partial[r][c.v_dim + 1] = whole;
    }
    span_values<N, abreast(N)>(s, 0, scores, partial);
}

// into = into merged with next, both [dim] values, maximum, sum. The values stay relative to their maximum.
inline void merge(float* into, const float* next, int dim) {
    float top = into[dim] > next[dim] ? into[dim] : next[dim];
    if (next[dim + 1] == 0) return;
    float a = into[dim + 1] == 0 ? 0.0f : exp1(into[dim] - top), b = exp1(next[dim] - top);
    in_vectors(dim, [&](int i, int n) {
        store_n(into + i, fma(load_n(next + i, n), set1(b), mul(load_n(into + i, n), set1(a))), n);
    });
    into[dim] = top;
    into[dim + 1] = into[dim + 1] * a + next[dim + 1] * b;
}

struct Rows {  // rows of one key head: row = query * group + head within the group
    const AttentionTask& task;
    int kv_head, group, k_dim, v_dim;
    Rows(const KvCache& c, const AttentionTask& t, int kv_head)
        : task(t), kv_head(kv_head), group(t.heads / c.kv_heads), k_dim(c.k_dim), v_dim(c.v_dim) {}
    int sees(int row) const { return task.start + row / group + 1; }
    const float* q(int row) const { return task.q + row / group * task.ldq + (kv_head * group + row % group) * k_dim; }
    float* out(int row) const { return task.out + row / group * task.ldo + (kv_head * group + row % group) * v_dim; }
};

template <int N> void span_some(const KvCache& c, const Rows& rows, int row, int count, int span, float* partial) {
    for (; count >= N; row += N, count -= N, partial += N * (c.v_dim + 2)) {
        const float* q[N];
        int limit[N];
        float* to[N];
        for (int r = 0; r < N; r++) {
            int left = rows.sees(row + r) - span * kSpan;
            limit[r] = left < kSpan ? left : kSpan;
            q[r] = rows.q(row + r);
            to[r] = partial + r * (c.v_dim + 2);
        }
        span_rows<N>(c, rows.task.table, rows.kv_head, span, q, limit, rows.task.scale, to);
    }
    if constexpr (N > 1)
        if (count) span_some<N - 1>(c, rows, row, count, span, partial);
}

inline void finish(const float* partial, int dim, float* out) {
    vf factor = set1(1.0f / partial[dim + 1]);
    in_vectors(dim, [&](int i, int n) { store_n(out + i, mul(load_n(partial + i, n), factor), n); });
}

void attention_span(const KvCache& c, const AttentionTask& task, int kv_head, int span, float* partial) {
    Rows rows(c, task, kv_head);
    span_some<kRowsTogether>(c, rows, 0, task.queries * rows.group, span, partial);
}

void attention_merge(const KvCache& c, const AttentionTask& task, int kv_head, int spans, const float* partial, ptrdiff_t stride) {
    Rows rows(c, task, kv_head);
    const int size = c.v_dim + 2;
    float* whole = (float*)thread_scratch(sizeof(float) * size);
    for (int row = 0; row < task.queries * rows.group; row++) {
        __builtin_memcpy(whole, partial + ptrdiff_t(row) * size, size * sizeof(float));
        for (int s = 1; s < spans && s * kSpan < rows.sees(row); s++) merge(whole, partial + s * stride + ptrdiff_t(row) * size, c.v_dim);
        finish(whole, c.v_dim, rows.out(row));
    }
}

void attention(const KvCache& c, const AttentionTask& task, int kv_head, int first, int count) {
    Rows rows(c, task, kv_head);
    const int size = c.v_dim + 2, end = first + count;
    float* whole = (float*)thread_scratch(sizeof(float) * 2 * kRowsTogether * size);
    float* next = whole + kRowsTogether * size;
    for (int row = first; row < end; row += kRowsTogether) {
        int n = end - row < kRowsTogether ? end - row : kRowsTogether;
        span_some<kRowsTogether>(c, rows, row, n, 0, whole);
        for (int s = 1; s * kSpan < rows.sees(row + n - 1); s++) {
            span_some<kRowsTogether>(c, rows, row, n, s, next);
            for (int r = 0; r < n; r++)
                if (s * kSpan < rows.sees(row + r)) merge(whole + r * size, next + r * size, c.v_dim);
        }
        for (int r = 0; r < n; r++) finish(whole + r * size, c.v_dim, rows.out(row + r));
    }
}

void store_position(const KvCache& c, const int32_t* table, int position, const float* k, const float* v) {
    const ptrdiff_t block = table[position / c.block_size];
    const int at = position % c.block_size;
    for (int h = 0; k && h < c.kv_heads; h++) {
        half* to = c.k + block * c.k_block() + (ptrdiff_t(h) * c.block_size + at / 16 * 16) * c.k_dim + at % 16;
        const float* from = k + ptrdiff_t(h) * c.k_dim;
        in_vectors(c.k_dim, [&](int i, int n) {
            half part[16];
            store_half(part, saturate(load_n(from + i, n)));
            for (int j = 0; j < n; j++) to[(i + j) * 16] = part[j];
        });
    }
    for (int h = 0; v && h < c.kv_heads; h++) {
        half* to = c.v + block * c.v_block() + (ptrdiff_t(h) * c.block_size + at) * c.v_dim;
        const float* from = v + ptrdiff_t(h) * c.v_dim;
        in_vectors(c.v_dim, [&](int i, int n) {
            half part[16];
            store_half(part, saturate(load_n(from + i, n)));
            __builtin_memcpy(to + i, part, 2 * n);
        });
    }
}
