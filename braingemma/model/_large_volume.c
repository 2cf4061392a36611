/* The encoder's work on a large volume, on a CPU: attention in bfloat16, and linear layers in eight bits.
 *
 * Attention: softmax(q k^T * scale) v by blocks of keys with a running maximum (arXiv 2205.14135, algorithm 1): no matrix
 * of tokens x tokens is ever written. Products are of bfloat16 with float32 sums (vdpbf16ps), as are those of torch's own
 * kernel; probabilities are rounded to bfloat16 before they meet the values, as there. What differs is how numbers lie:
 * keys and values are first put into the order in which a vector of sixteen lanes takes them,
 *
 *   - keys [group of 64][pair of dimensions][key][2]: a lane is a key, and a pair of a query meets all lanes at once,
 *   - values [pair of keys][dimension][2]: a lane is a dimension, and a pair of probabilities meets all lanes at once,
 *
 * and `ROWS` queries share each vector while it is in a register. A dimension of 72 is four and a half vectors; the half
 * is one of 256 bits, so nothing is multiplied in vain.
 *
 * Linear layers (arXiv 2208.07339, section 2.1, without its outliers apart): each row of x is rounded to 255 levels of its
 * own largest value, each row of the weight was rounded so before; sums are of integers and exact (vpdpbusd, which wants
 * one side without a sign: 128 is added to it, and its share taken away from the sum).
 */

#include <math.h>
#include <omp.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if defined(__x86_64__)
#include <immintrin.h>
#define ON_X86 1
#else
#define ON_X86 0
#endif

/* Whether this processor multiplies in bfloat16 and in eight bits. */
int works(void)
{
#if ON_X86
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni");
#else
    return 0;
#endif
}

#if ON_X86

#define TARGET __attribute__((target("avx512f,avx512bw,avx512vl,avx512bf16,avx512vnni")))
#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 8")

enum {
    ROWS = 5,      /* queries that share a vector: with them 25 sums and 5 vectors of values fill 31 of 32 registers */
    GROUP = 64,    /* keys whose scores are summed at once */
    BLOCK = 256,   /* keys between two looks at the maximum; keys and values of a block stay in the second cache */
    QUERIES = 80,  /* queries that go through the keys together; a multiple of ROWS */
    LANES = 16,
    MOST = 128,    /* dimensions of a head at most */
    TILE = 6,      /* rows of x that share a vector of a weight */
    AT_ONCE = 96   /* rows of x that are rounded together; a multiple of TILE */
};

typedef struct {
    int64_t batch, heads, tokens, dim;
    int64_t of_batch, of_head, of_token; /* elements from one to the next, in q, k and v alike */
    float scale;                         /* with log2(e) in it */
} Shape;

static int64_t groups_of(const Shape *s) { return (s->tokens + GROUP - 1) / GROUP; }

/* Keys of one head as `scores` takes them; those behind the last are 0. */
static void pack_keys(const Shape *s, const uint16_t *k, uint16_t *packed)
{
    int64_t pairs = s->dim / 2;
    for (int64_t g = 0; g < groups_of(s); g++)
        for (int64_t key = 0; key < GROUP; key++) {
            uint16_t *to = packed + g * GROUP * s->dim + 2 * key;
            int64_t token = g * GROUP + key;
            const uint16_t *from = k + token * s->of_token;
            for (int64_t p = 0; p < pairs; p++) {
                to[p * 2 * GROUP] = token < s->tokens ? from[2 * p] : 0;
                to[p * 2 * GROUP + 1] = token < s->tokens ? from[2 * p + 1] : 0;
            }
        }
}

/* Values of one head as `add_values` takes them; those behind the last are 0. */
static void pack_values(const Shape *s, const uint16_t *v, uint16_t *packed)
{
    for (int64_t token = 0; token < groups_of(s) * GROUP; token++) {
        uint16_t *to = packed + token / 2 * 2 * s->dim + token % 2;
        const uint16_t *from = v + token * s->of_token;
        for (int64_t d = 0; d < s->dim; d++) to[2 * d] = token < s->tokens ? from[d] : 0;
    }
}

/* (ROWS, BLOCK) products of queries with the keys of `groups` groups. */
TARGET INLINE void scores(const uint16_t *const *q, const uint16_t *keys, int64_t groups, int pairs, float *out)
{
    for (int64_t g = 0; g < groups; g++, keys += GROUP * 2 * pairs, out += GROUP) {
        __m512 sum[ROWS][4];
        UNROLL for (int r = 0; r < ROWS; r++) UNROLL for (int j = 0; j < 4; j++) sum[r][j] = _mm512_setzero_ps();
        for (int p = 0; p < pairs; p++) {
            __m512bh key[4];
            UNROLL for (int j = 0; j < 4; j++)
                key[j] = (__m512bh)_mm512_loadu_si512(keys + (p * 4 + j) * 2 * LANES);
            UNROLL for (int r = 0; r < ROWS; r++) {
                int32_t pair;
                memcpy(&pair, q[r] + 2 * p, sizeof pair);
                __m512bh both = (__m512bh)_mm512_set1_epi32(pair);
                UNROLL for (int j = 0; j < 4; j++) sum[r][j] = _mm512_dpbf16_ps(sum[r][j], key[j], both);
            }
        }
        UNROLL for (int r = 0; r < ROWS; r++)
            UNROLL for (int j = 0; j < 4; j++) _mm512_storeu_ps(out + r * BLOCK + j * LANES, sum[r][j]);
    }
}

/* 2 to the power of x, for x <= 120; relative error below 1e-5, a hundredth of bfloat16's. What is no number stays so:
 * of two operands the larger is the second one wherever one of them is not a number. */
TARGET INLINE __m512 power_of_two(__m512 x)
{
    x = _mm512_max_ps(_mm512_set1_ps(-200.0f), x);
    __m512 whole = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    __m512 rest = _mm512_sub_ps(x, whole), sum = _mm512_set1_ps(0.00961813f);
    sum = _mm512_fmadd_ps(sum, rest, _mm512_set1_ps(0.05550411f));
    sum = _mm512_fmadd_ps(sum, rest, _mm512_set1_ps(0.24022651f));
    sum = _mm512_fmadd_ps(sum, rest, _mm512_set1_ps(0.69314718f));
    return _mm512_scalef_ps(_mm512_fmadd_ps(sum, rest, _mm512_set1_ps(1.0f)), whole);
}

/* Scores of one query to probabilities in bfloat16, unnormalised; gives what earlier sums are to be multiplied by. */
TARGET INLINE float soften(const float *scored, int64_t keys, float scale, float *most, float *total, uint16_t *out)
{
    __m512 high = _mm512_loadu_ps(scored), sum = _mm512_setzero_ps();
    for (int64_t i = LANES; i < keys; i += LANES) high = _mm512_max_ps(high, _mm512_loadu_ps(scored + i));
    float found = _mm512_reduce_max_ps(high), before = *most;
    *most = found > before ? found : before;
    __m512 factor = _mm512_set1_ps(scale), shift = _mm512_set1_ps(-*most * scale);
    for (int64_t i = 0; i < keys; i += 2 * LANES) {
        __m512 a = power_of_two(_mm512_fmadd_ps(_mm512_loadu_ps(scored + i), factor, shift));
        __m512 b = power_of_two(_mm512_fmadd_ps(_mm512_loadu_ps(scored + i + LANES), factor, shift));
        sum = _mm512_add_ps(sum, _mm512_add_ps(a, b));
        _mm512_storeu_si512(out + i, (__m512i)_mm512_cvtne2ps_pbh(b, a));
    }
    float kept = _mm512_cvtss_f32(power_of_two(_mm512_set1_ps((before - *most) * scale)));
    *total = *total * kept + _mm512_reduce_add_ps(sum);
    return kept;
}

/* sums (ROWS, MOST) * kept + probabilities (ROWS, BLOCK) times values. */
TARGET INLINE void add_values(
    const uint16_t *shares, const uint16_t *values, int64_t keys, const float *kept, float *sums, int full, int half)
{
    __m512 sum[ROWS][8];
    __m256 last[ROWS];
    int dim = full * LANES + half * LANES / 2;
    UNROLL for (int r = 0; r < ROWS; r++) {
        UNROLL for (int c = 0; c < full; c++)
            sum[r][c] = _mm512_mul_ps(_mm512_loadu_ps(sums + r * MOST + c * LANES), _mm512_set1_ps(kept[r]));
        if (half) last[r] = _mm256_mul_ps(_mm256_loadu_ps(sums + r * MOST + full * LANES), _mm256_set1_ps(kept[r]));
    }
    for (int64_t key = 0; key < keys; key += 2, values += 2 * dim) {
        __m512bh value[8];
        __m256bh final = {0};
        UNROLL for (int c = 0; c < full; c++) value[c] = (__m512bh)_mm512_loadu_si512(values + c * 2 * LANES);
        if (half) final = (__m256bh)_mm256_loadu_si256((const __m256i *)(values + full * 2 * LANES));
        UNROLL for (int r = 0; r < ROWS; r++) {
            int32_t pair;
            memcpy(&pair, shares + r * BLOCK + key, sizeof pair);
            __m512bh both = (__m512bh)_mm512_set1_epi32(pair);
            UNROLL for (int c = 0; c < full; c++) sum[r][c] = _mm512_dpbf16_ps(sum[r][c], value[c], both);
            if (half) last[r] = _mm256_dpbf16_ps(last[r], final, (__m256bh)_mm256_set1_epi32(pair));
        }
    }
    UNROLL for (int r = 0; r < ROWS; r++) {
        UNROLL for (int c = 0; c < full; c++) _mm512_storeu_ps(sums + r * MOST + c * LANES, sum[r][c]);
        if (half) _mm256_storeu_ps(sums + r * MOST + full * LANES, last[r]);
    }
}

/* QUERIES queries of one head, from `first` on. */
TARGET INLINE void attend_n(const Shape *s, const uint16_t *q, const uint16_t *keys, const uint16_t *values,
                            int64_t first, uint16_t *out, int full, int half)
{
    int dim = full * LANES + half * LANES / 2;
    float sums[QUERIES * MOST], most[QUERIES], total[QUERIES], scored[ROWS * BLOCK], kept[ROWS];
    uint16_t shares[ROWS * BLOCK];
    memset(sums, 0, sizeof sums);
    for (int i = 0; i < QUERIES; i++) most[i] = -3e38f, total[i] = 0;
    for (int64_t start = 0; start < s->tokens; start += BLOCK) {
        int64_t valid = s->tokens - start < BLOCK ? s->tokens - start : BLOCK, groups = (valid + GROUP - 1) / GROUP;
        for (int64_t row = 0; row < QUERIES && first + row < s->tokens; row += ROWS) {
            const uint16_t *query[ROWS];
            for (int r = 0; r < ROWS; r++) {
                int64_t token = first + row + r < s->tokens ? first + row + r : s->tokens - 1;
                query[r] = q + token * s->of_token;
            }
            scores(query, keys + start * dim, groups, dim / 2, scored);
            for (int r = 0; r < ROWS; r++) {
                for (int64_t i = valid; i < groups * GROUP; i++) scored[r * BLOCK + i] = -3e38f;
                kept[r] = soften(scored + r * BLOCK, groups * GROUP, s->scale, most + row + r, total + row + r,
                                 shares + r * BLOCK);
            }
            add_values(shares, values + start * dim, groups * GROUP, kept, sums + row * MOST, full, half);
        }
    }
    for (int64_t row = 0; row < QUERIES && first + row < s->tokens; row++) {
        uint16_t *to = out + (first + row) * s->heads * dim;
        __m512 share = _mm512_set1_ps(1.0f / total[row]);
        for (int c = 0; c < dim; c += LANES / 2) {
            __m256 part = _mm256_mul_ps(_mm256_loadu_ps(sums + row * MOST + c), _mm512_castps512_ps256(share));
            _mm_storeu_si128((__m128i *)(to + c), (__m128i)_mm256_cvtneps_pbh(part));
        }
    }
}

TARGET static void attend_64(const Shape *s, const uint16_t *q, const uint16_t *k, const uint16_t *v, int64_t first,
                             uint16_t *out)
{
    attend_n(s, q, k, v, first, out, 4, 0);
}

TARGET static void attend_72(const Shape *s, const uint16_t *q, const uint16_t *k, const uint16_t *v, int64_t first,
                             uint16_t *out)
{
    attend_n(s, q, k, v, first, out, 4, 1);
}

/* Sixteen numbers in bfloat16. */
TARGET INLINE __m512 widen(const uint16_t *x)
{
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)x)), 16));
}

/* A row of x to 128 + the nearest of -127..127 steps; gives the step, which is no number where one of x is none. */
TARGET static float round_row(const uint16_t *x, int64_t k, uint8_t *out)
{
    __m512 high = _mm512_setzero_ps();
    __mmask16 none = 0;
    for (int64_t i = 0; i < k; i += LANES) {
        __m512 v = widen(x + i);
        none |= _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
        high = _mm512_max_ps(high, _mm512_abs_ps(v));
    }
    float most = _mm512_reduce_max_ps(high);
    if (most < 1e-30f) most = 1e-30f;
    __m512 factor = _mm512_set1_ps(127.0f / most);
    for (int64_t i = 0; i < k; i += LANES) {
        __m512i step = _mm512_cvtps_epi32(_mm512_mul_ps(widen(x + i), factor));
        _mm_storeu_si128((__m128i *)(out + i), _mm512_cvtepi32_epi8(_mm512_add_epi32(step, _mm512_set1_epi32(128))));
    }
    return none ? NAN : most / 127.0f;
}

/* GELU by its tanh: v times the sigmoid of 2 sqrt(2 / pi) (v + 0.044715 v^3) (arXiv 1606.08415). */
TARGET INLINE __m512 gelu_of(__m512 v)
{
    __m512 u = _mm512_fmadd_ps(_mm512_mul_ps(_mm512_mul_ps(v, v), v), _mm512_set1_ps(0.044715f), v);
    u = _mm512_min_ps(_mm512_mul_ps(u, _mm512_set1_ps(-2.30220819f)), _mm512_set1_ps(120.0f));
    return _mm512_div_ps(v, _mm512_add_ps(_mm512_set1_ps(1.0f), power_of_two(u)));
}

/* A weight: `n` rows of `k` codes as [group of 64][four of k][64][4], n filled up to whole groups; `zero`: what the 128
 * that is added to x adds to each sum. */
typedef struct {
    int64_t n, k;
    const int8_t *codes;
    const float *steps;
    const int32_t *zero;
    const float *bias;
    int gelu;
} Weight;

/* At most AT_ONCE rows of x times a weight. */
TARGET static void multiply(const Weight *w, int64_t rows, const uint16_t *x, uint16_t *out, uint8_t *codes)
{
    float step[AT_ONCE];
    for (int64_t r = 0; r < rows; r++) step[r] = round_row(x + r * w->k, w->k, codes + r * w->k);
    for (int64_t column = 0; column < w->n; column += GROUP) {
        const int8_t *group = w->codes + column * w->k;
        for (int64_t row = 0; row < rows; row += TILE) {
            __m512i sum[TILE][4];
            const uint8_t *own[TILE];
            UNROLL for (int r = 0; r < TILE; r++) {
                own[r] = codes + (row + r < rows ? row + r : rows - 1) * w->k;
                UNROLL for (int j = 0; j < 4; j++) sum[r][j] = _mm512_setzero_si512();
            }
            for (int64_t i = 0; i < w->k; i += 4) {
                __m512i code[4];
                UNROLL for (int j = 0; j < 4; j++) code[j] = _mm512_loadu_si512(group + i * GROUP + j * 4 * LANES);
                UNROLL for (int r = 0; r < TILE; r++) {
                    int32_t four;
                    memcpy(&four, own[r] + i, sizeof four);
                    __m512i all = _mm512_set1_epi32(four);
                    UNROLL for (int j = 0; j < 4; j++) sum[r][j] = _mm512_dpbusd_epi32(sum[r][j], all, code[j]);
                }
            }
            UNROLL for (int r = 0; r < TILE; r++) UNROLL for (int j = 0; j < 4; j++) {
                int64_t c = column + j * LANES;
                if (row + r >= rows || c >= w->n) continue;
                __m512i exact = _mm512_sub_epi32(sum[r][j], _mm512_loadu_si512(w->zero + c));
                __m512 v = _mm512_mul_ps(_mm512_cvtepi32_ps(exact), _mm512_set1_ps(step[row + r]));
                v = _mm512_fmadd_ps(v, _mm512_loadu_ps(w->steps + c), _mm512_loadu_ps(w->bias + c));
                if (w->gelu) v = gelu_of(v);
                _mm256_storeu_si256((__m256i *)(out + (row + r) * w->n + c), (__m256i)_mm512_cvtneps_pbh(v));
            }
        }
    }
}

#endif

/* q, k, v (batch, heads, tokens, dim) in bfloat16, by the given strides, the last of them 1; out (batch, tokens, heads,
 * dim), contiguous. Gives 0, or 1 where there is no memory, or 2 where this processor or dimension is not provided for. */
int attention(int64_t batch, int64_t heads, int64_t tokens, int64_t dim, int64_t of_batch, int64_t of_head,
              int64_t of_token, const uint16_t *q, const uint16_t *k, const uint16_t *v, uint16_t *out, float scale,
              int threads)
{
#if ON_X86
    if (!works() || (dim != 64 && dim != 72)) return 2;
    Shape s = {batch, heads, tokens, dim, of_batch, of_head, of_token, scale * 1.44269504f};
    int64_t size = groups_of(&s) * GROUP * dim, blocks = (tokens + QUERIES - 1) / QUERIES;
    uint16_t *packed = aligned_alloc(64, (size_t)(2 * heads * size) * sizeof *packed);
    if (packed == NULL) return 1;
    for (int64_t b = 0; b < batch; b++) { /* one volume at a time: packed keys and values are as large as it */
#pragma omp parallel for num_threads(threads) schedule(dynamic)
        for (int64_t h = 0; h < heads; h++) {
            pack_keys(&s, k + b * of_batch + h * of_head, packed + 2 * h * size);
            pack_values(&s, v + b * of_batch + h * of_head, packed + (2 * h + 1) * size);
        }
#pragma omp parallel for num_threads(threads) schedule(dynamic)
        for (int64_t task = 0; task < heads * blocks; task++) {
            int64_t h = task / blocks, first = task % blocks * QUERIES;
            const uint16_t *keys = packed + 2 * h * size, *values = keys + size;
            const uint16_t *query = q + b * of_batch + h * of_head;
            uint16_t *to = out + b * tokens * heads * dim + h * dim;
            (dim == 72 ? attend_72 : attend_64)(&s, query, keys, values, first, to);
        }
    }
    free(packed);
    return 0;
#else
    return 2;
#endif
}

/* x (m, k) in bfloat16 times a weight in eight bits, plus bias, through GELU where asked; out (m, n) in bfloat16; k and n
 * are multiples of 16; codes, steps, zero and bias as in `Weight`, the last three of whole groups. Gives 0, or 1 where
 * there is no memory, or 2 where this processor or size is not provided for. */
int linear(int64_t m, int64_t k, int64_t n, const uint16_t *x, const int8_t *codes, const float *steps,
           const int32_t *zero, const float *bias, uint16_t *out, int gelu, int threads)
{
#if ON_X86
    if (!works() || k % LANES || n % LANES) return 2;
    Weight w = {n, k, codes, steps, zero, bias, gelu};
    uint8_t *rounded = aligned_alloc(64, (size_t)(threads * AT_ONCE * k));
    if (rounded == NULL) return 1;
#pragma omp parallel for num_threads(threads) schedule(dynamic)
    for (int64_t first = 0; first < m; first += AT_ONCE) {
        uint8_t *own = rounded + (int64_t)omp_get_thread_num() * AT_ONCE * k;
        multiply(&w, m - first < AT_ONCE ? m - first : AT_ONCE, x + first * k, out + first * n, own);
    }
    free(rounded);
    return 0;
#else
    return 2;
#endif
}
