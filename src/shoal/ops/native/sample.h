// Choosing a token, and log-probabilities. V numbers each.
#pragma once

#include <vector>

namespace shoal {

// The token that the uniform random `number` in [0, 1) falls on: temperature, then top_k (0: all), top_p, min_p.
// -1 when no score is a number above -infinity. T is float or double.
template <class T> int choose(const T* scores, int count, double temperature, long long top_k, double top_p, double min_p, double number);

// log sum exp of logits; not-a-number counts as -infinity.
double log_sum_exp(const float* logits, int count);

// The ids of the `wanted` highest, best first, equal ones by id.
std::vector<int> likeliest(const float* logits, int count, int wanted);

}  // namespace shoal
