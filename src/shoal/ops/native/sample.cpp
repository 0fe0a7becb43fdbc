// Choosing a token from logits, and log-probabilities: what engine/sampling.py does in numpy, in a few passes over the
// vocabulary. Exponentials are floats (relative error 1e-7), sums are doubles.
#include "sample.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels.h"

namespace shoal {

namespace {

constexpr double kNothing = -std::numeric_limits<double>::infinity();
constexpr int kStretch = 64;  // numbers that are summed before their sum is compared

// Not-a-number can never be chosen, +infinity is a very large number.
inline double sound(double x) { return std::isnan(x) ? kNothing : x > 1e300 ? 1e300 : x; }

struct Candidate {
    int id;
    double value;
};

inline bool likelier(const Candidate& a, const Candidate& b) { return a.value > b.value || (a.value == b.value && a.id < b.id); }
inline bool by_id(const Candidate& a, const Candidate& b) { return a.id < b.id; }

template <class T> __attribute__((optimize("O3"))) double largest(const T* scores, int count) {
    double top[8];
    std::fill_n(top, 8, kNothing);
    int i = 0;
    for (; i + 8 <= count; i += 8)
        for (int j = 0; j < 8; j++) {
            double x = double(scores[i + j]);
            top[j] = x > top[j] ? x : top[j];  // false for not-a-number
        }
    for (; i < count; i++) top[0] = double(scores[i]) > top[0] ? double(scores[i]) : top[0];
    double most = sound(*std::max_element(top, top + 8));
    return most;
}

template <class T> __attribute__((optimize("O3"))) void below(const T* scores, int count, double top, double factor, float* out) {
    for (int i = 0; i < count; i++) {
        double x = double(scores[i]);
        x = x > 1e300 ? 1e300 : x;
        out[i] = x == x ? float((x - top) * factor) : -std::numeric_limits<float>::infinity();
    }
}

// The index on which `number` times the sum falls.
__attribute__((optimize("O3"))) int fall(const float* p, int count, double number) {
    static thread_local std::vector<double> sums;
    sums.clear();
    double whole = 0;
    for (int at = 0; at < count; at += kStretch) {
        double part[8] = {};
        int end = std::min(at + kStretch, count), i = at;
        for (; i + 8 <= end; i += 8)
            for (int j = 0; j < 8; j++) part[j] += double(p[i + j]);
        for (; i < end; i++) part[0] += double(p[i]);
        for (int j = 1; j < 8; j++) part[0] += part[j];
        sums.push_back(part[0]);
        whole += part[0];
    }
    double target = number * whole, passed = 0;
    size_t stretch = 0;
    while (stretch + 1 < sums.size() && passed + sums[stretch] <= target) passed += sums[stretch++];
    int last = -1;
    for (int i = int(stretch) * kStretch; i < count; i++) {
        if (p[i] == 0) continue;
        last = i;
        passed += double(p[i]);
        if (passed > target) return i;
    }
    if (last >= 0) return last;
    for (int i = count - 1; i >= 0; i--)
        if (p[i] > 0) return i;
    return -1;
}

template <class T> void highest(const T* scores, int count, size_t wanted, std::vector<Candidate>& best) {
    best.clear();
    if (wanted > 256) {
        for (int i = 0; i < count; i++) best.push_back({i, sound(double(scores[i]))});
        std::nth_element(best.begin(), best.begin() + ptrdiff_t(wanted), best.end(), likelier);
        best.resize(wanted);
        return;
    }
    for (int i = 0; i < count; i++) {  // a heap with the least of them in front
        if (best.size() == wanted && !(double(scores[i]) > best.front().value)) continue;
        Candidate c{i, sound(double(scores[i]))};
        if (best.size() == wanted) {
            std::pop_heap(best.begin(), best.end(), likelier);
            best.pop_back();
        }
        best.push_back(c);
        std::push_heap(best.begin(), best.end(), likelier);
    }
}

}  // namespace

template <class T>
int choose(const T* scores, int count, double temperature, long long top_k, double top_p, double min_p, double number) {
    static thread_local std::vector<float> p;
    static thread_local std::vector<Candidate> kept;
    double top = largest(scores, count);
    if (top == kNothing) return -1;
    double sum = 1;
    if (top_k > 0 && top_k < count) {
        highest(scores, count, size_t(top_k), kept);
        sum = 0;
        for (Candidate& c : kept) sum += c.value = std::exp((c.value - top) / temperature);
    } else {
        p.resize(size_t(count));
        below(scores, count, top, 1 / temperature, p.data());
        kernels().softmax(p.data(), count);
        if (!(top_p < 1) && !(min_p > 0)) return fall(p.data(), count, number);
        // Nothing less likely than this can stay: the tokens behind the last one of the nucleus are no likelier than it
        // and more than 1 - top_p together.
        double least = top_p < 1 ? 0.999 * (1 - std::max(top_p, 0.0)) / count : 0;
        if (min_p > 0) least = std::max(least, 0.999 * std::min(min_p, 1.0) * double(*std::max_element(p.begin(), p.end())));
        kept.clear();
        for (int i = 0; i < count; i++)
            if (double(p[size_t(i)]) >= least) kept.push_back({i, double(p[size_t(i)])});
    }
    if (top_p < 1) {
        // The likeliest until their probabilities reach top_p, at least one: taken one by one from a heap.
        auto less = [](const Candidate& a, const Candidate& b) { return likelier(b, a); };
        std::make_heap(kept.begin(), kept.end(), less);
        double before = 0;
        auto end = kept.end();
        do {
            std::pop_heap(kept.begin(), end, less);
            --end;
            before += end->value / sum;
        } while (end != kept.begin() && before < top_p);
        kept.erase(kept.begin(), end);
    }
    if (min_p > 0) {
        double most = 0;
        for (const Candidate& c : kept) most = std::max(most, c.value);
        double least = std::min(min_p, 1.0) * most;
        kept.erase(std::remove_if(kept.begin(), kept.end(), [&](const Candidate& c) { return c.value < least; }), kept.end());
    }
    std::sort(kept.begin(), kept.end(), by_id);
    sum = 0;
    for (const Candidate& c : kept) sum += c.value;
    double target = number * sum, passed = 0;
    for (const Candidate& c : kept) {
        passed += c.value;
        if (passed > target) return c.id;
    }
    return kept.back().id;
}

template int choose(const float*, int, double, long long, double, double, double);
template int choose(const double*, int, double, long long, double, double, double);

double log_sum_exp(const float* logits, int count) {
    static thread_local std::vector<float> p;
    double top = largest(logits, count);
    if (top == kNothing) return top;
    p.resize(size_t(count));
    below(logits, count, top, 1, p.data());
    return top + double(kernels().softmax(p.data(), count));
}

std::vector<int> likeliest(const float* logits, int count, int wanted) {
    std::vector<Candidate> best;
    if (wanted > 0) highest(logits, count, size_t(std::min(wanted, count)), best);
    std::sort(best.begin(), best.end(), likelier);
    std::vector<int> ids;
    for (const Candidate& c : best) ids.push_back(c.id);
    return ids;
}

}  // namespace shoal
