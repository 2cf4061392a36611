/* A few rows times a weight that stays packed: what decoding token by token on a CPU consists of.
 *
 * The time of such a product is the time of reading the weight once. So each weight is taken from memory in the form
 * in which it lies there, turned into floats in registers, and multiplied at once:
 *
 *   - NF4 (QLoRA, arXiv 2305.14314, appendix E): two codes to a byte, the first in the upper half, one float32 scale
 *     for each block of a row; all arithmetic in float32, or, for an x in bfloat16, the codes in bfloat16 too.
 *   - bfloat16: the upper half of a float32.
 *   - int8 with one float32 scale for each row.
 *
 * A vector of 32-bit lanes is loaded as it lies and shifted right by 4 * k (NF4) or 16 * k (bfloat16) bits, which
 * brings one value of each lane into place; so a row of x is first put into the order in which lanes and shifts meet
 * its values (`arrange`), and nothing is unpacked or shuffled. Up to `MANY` rows of x meet a value while it is in a
 * register, each with the same operations in the same order as if it came alone. The rows of a weight are read one after the other, as
 * they lie, and what comes a page later is asked for ahead. The file holds paths for AVX2, AVX-512 and
 * AVX-512 with bfloat16; which ones run is asked of the processor at run time, and where none does, the caller has to
 * do without (`best_level`).
 */

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if defined(__x86_64__)
#include <immintrin.h>
#define ON_X86 1
#else
#define ON_X86 0
#endif

enum { NONE = 0, AVX2 = 1, AVX512 = 2, AVX512_BF16 = 3 };
enum { NF4 = 0, BF16 = 1, INT8 = 2 };

/* Rows of x that share the unpacking of a weight. */
enum { MANY = 4 };

/* Bytes by which a weight is asked for ahead of its use: measured best among 1 to 8 KB. */
enum { AHEAD = 4096 };

/* A weight: `n` rows of `k` values; for NF4 with a scale for each `block` of them, for INT8 with one for each row. */
typedef struct {
    int kind;
    int64_t n, k, block;
    const uint8_t *values;
    const float *scales;
} Weight;

/* The most that this processor can do. */
int best_level(void)
{
#if ON_X86
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512bw")) return AVX512_BF16;
    if (__builtin_cpu_supports("avx512f")) return AVX512;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return AVX2;
#endif
    return NONE;
}

#if ON_X86

static const float NF4_CODE[16] = {
    -1.0f, -0.6961928009986877f, -0.5250730514526367f, -0.39491748809814453f,
    -0.28444138169288635f, -0.18477343022823334f, -0.09105003625154495f, 0.0f,
    0.07958029955625534f, 0.16093020141124725f, 0.24611230194568634f, 0.33791524171829224f,
    0.44070982933044434f, 0.5626170039176941f, 0.7229568362236023f, 1.0f};

static int64_t row_bytes(const Weight *w) { return w->kind == NF4 ? w->k / 2 : w->kind == BF16 ? w->k * 2 : w->k; }

#define INLINE static inline __attribute__((always_inline))
/* `name`_n for each number of rows that the compiler is to unroll. */
#define FOR_EACH_COUNT(target, name, type)                                                                      \
    target static void name(const Weight *w, int64_t row, const type *x, int64_t width, int m, float *out)      \
    {                                                                                                           \
        if (m == 1) name##_n(w, row, x, width, 1, out);                                                         \
        else if (m == 2) name##_n(w, row, x, width, 2, out);                                                    \
        else if (m == 3) name##_n(w, row, x, width, 3, out);                                                    \
        else name##_n(w, row, x, width, 4, out);                                                                \
    }
#define EACH for (int i = 0; i < m; i++)

/* Put one row of x into the order in which vectors of `lanes` lanes of `in_lane` values meet it; zeros fill the last. */
static void arrange(const float *x, int64_t k, int kind, int lanes, int in_lane, float *out)
{
    int64_t step = (int64_t)lanes * in_lane;
    for (int64_t start = 0; start < k; start += step)
        for (int shift = 0; shift < in_lane; shift++)
            for (int lane = 0; lane < lanes; lane++) {
                /* The first code of a byte is its upper half: shifts 0, 1, 2, ... meet values 1, 0, 3, 2, ... */
                int value = kind == NF4 ? shift ^ 1 : shift;
                int64_t from = start + (int64_t)lane * in_lane + value;
                *out++ = from < k ? x[from] : 0.0f;
            }
}

/* The upper half of each float: bfloat16, exact for a number that was one. In place, into the front of the array. */
static void halve(float *x, int64_t count)
{
    uint16_t *halves = (uint16_t *)x;
    for (int64_t i = 0; i < count; i++) {
        uint32_t whole;
        memcpy(&whole, (const char *)x + 4 * i, sizeof whole);
        uint16_t half = (uint16_t)(whole >> 16);
        memcpy((char *)halves + 2 * i, &half, sizeof half);
    }
}

#define ASK_AHEAD(address) _mm_prefetch((const char *)(address) + AHEAD, _MM_HINT_T0)

/* ---------------------------------------------------------------- AVX-512: 16 lanes */

#define WIDE __attribute__((target("avx512f")))

/* Which of up to four scales each lane needs, and how many there are in 128 values. */
WIDE static inline __m512i wide_which(const Weight *w)
{
    const __m512i lane = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    return w->block >= 128 ? _mm512_setzero_si512() : _mm512_srli_epi32(lane, w->block == 64 ? 3 : 2);
}

/* The scale of each lane: `count` values of a row, from value `start` on. */
WIDE static inline __m512 wide_scales(
    const Weight *w, const float *scales, int64_t start, int64_t count, __m512i which)
{
    const __mmask16 blocks = (__mmask16)((1u << ((count + w->block - 1) / w->block)) - 1);
    return _mm512_permutexvar_ps(which, _mm512_maskz_loadu_ps(blocks, scales + start / w->block));
}

/* These and the following: `m` arranged rows of x, `width` apart, times one row of the weight; `n` apart in `out`. */
INLINE WIDE void wide_nf4_n(const Weight *w, int64_t row, const float *x, int64_t width, const int m, float *out)
{
    const __m512 code = _mm512_loadu_ps(NF4_CODE);
    const __m512i which = wide_which(w);
    const uint8_t *values = w->values + row * row_bytes(w);
    const float *scales = w->scales + row * (w->k / w->block);
    __m512 total[MANY], part[MANY];
    EACH total[i] = _mm512_setzero_ps();
    for (int64_t start = 0; start < w->k; start += 128, x += 128) {
        const int64_t count = w->k - start < 128 ? w->k - start : 128;
        ASK_AHEAD(values + start / 2);
        const __m512i packed = _mm512_maskz_loadu_epi32((__mmask16)((1u << (count / 8)) - 1), values + start / 2);
        const __m512 first = _mm512_permutexvar_ps(packed, code);
        EACH part[i] = _mm512_mul_ps(first, _mm512_loadu_ps(x + i * width));
#pragma GCC unroll 7
        for (int shift = 1; shift < 8; shift++) {
            const __m512 value = _mm512_permutexvar_ps(_mm512_srli_epi32(packed, 4 * shift), code);
            EACH part[i] = _mm512_fmadd_ps(value, _mm512_loadu_ps(x + i * width + 16 * shift), part[i]);
        }
        const __m512 scale = wide_scales(w, scales, start, count, which);
        EACH total[i] = _mm512_fmadd_ps(part[i], scale, total[i]);
    }
    EACH out[i * w->n] = _mm512_reduce_add_ps(total[i]);
}

INLINE WIDE void wide_bf16_n(const Weight *w, int64_t row, const float *x, int64_t width, const int m, float *out)
{
    const uint8_t *values = w->values + row * row_bytes(w);
    const __m512i upper = _mm512_set1_epi32((int)0xffff0000u);
    __m512 even[MANY], odd[MANY];
    EACH even[i] = odd[i] = _mm512_setzero_ps();
    for (int64_t start = 0; start < w->k; start += 32, x += 32) {
        const int64_t count = w->k - start < 32 ? w->k - start : 32;
        ASK_AHEAD(values + 2 * start);
        const __m512i pair = _mm512_maskz_loadu_epi32((__mmask16)((1u << (count / 2)) - 1), values + 2 * start);
        const __m512 low = _mm512_castsi512_ps(_mm512_slli_epi32(pair, 16));
        const __m512 high = _mm512_castsi512_ps(_mm512_and_si512(pair, upper));
        EACH even[i] = _mm512_fmadd_ps(low, _mm512_loadu_ps(x + i * width), even[i]);
        EACH odd[i] = _mm512_fmadd_ps(high, _mm512_loadu_ps(x + i * width + 16), odd[i]);
    }
    EACH out[i * w->n] = _mm512_reduce_add_ps(_mm512_add_ps(even[i], odd[i]));
}

/* k is a multiple of 32. */
INLINE WIDE void wide_int8_n(const Weight *w, int64_t row, const float *x, int64_t width, const int m, float *out)
{
    const uint8_t *values = w->values + row * row_bytes(w);
    __m512 even[MANY], odd[MANY];
    EACH even[i] = odd[i] = _mm512_setzero_ps();
    for (int64_t start = 0; start < w->k; start += 32, x += 32) {
        ASK_AHEAD(values + start);
        const __m128i *here = (const __m128i *)(values + start);
        const __m512 low = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(here)));
        const __m512 high = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(here + 1)));
        EACH even[i] = _mm512_fmadd_ps(low, _mm512_loadu_ps(x + i * width), even[i]);
        EACH odd[i] = _mm512_fmadd_ps(high, _mm512_loadu_ps(x + i * width + 16), odd[i]);
    }
    EACH out[i * w->n] = w->scales[row] * _mm512_reduce_add_ps(_mm512_add_ps(even[i], odd[i]));
}

FOR_EACH_COUNT(WIDE, wide_nf4, float)
FOR_EACH_COUNT(WIDE, wide_bf16, float)
FOR_EACH_COUNT(WIDE, wide_int8, float)

/* ---------------------------------------------------------------- AVX-512 with bfloat16: 32 lanes of 16 bits, in pairs */

#define HALF __attribute__((target("avx512f,avx512bw,avx512bf16")))

/* As `wide_nf4`, for an arranged and halved x: twice the values in each step. */
INLINE HALF void half_nf4_n(const Weight *w, int64_t row, const uint16_t *x, int64_t width, const int m, float *out)
{
    /* The codes rounded to bfloat16, twice: a permutation of 32 lanes also looks at the bit above the code. */
    const __m512i code = (__m512i)_mm512_cvtne2ps_pbh(_mm512_loadu_ps(NF4_CODE), _mm512_loadu_ps(NF4_CODE));
    const __m512i which = wide_which(w);
    const uint8_t *values = w->values + row * row_bytes(w);
    const float *scales = w->scales + row * (w->k / w->block);
    __m512 total[MANY], part[MANY];
    EACH total[i] = _mm512_setzero_ps();
    for (int64_t start = 0; start < w->k; start += 128, x += 128) {
        const int64_t count = w->k - start < 128 ? w->k - start : 128;
        ASK_AHEAD(values + start / 2);
        const __m512i packed = _mm512_maskz_loadu_epi32((__mmask16)((1u << (count / 8)) - 1), values + start / 2);
        EACH part[i] = _mm512_setzero_ps();
#pragma GCC unroll 4
        for (int shift = 0; shift < 4; shift++) {
            const __m512bh value = (__m512bh)_mm512_permutexvar_epi16(_mm512_srli_epi16(packed, 4 * shift), code);
            EACH part[i] =
                _mm512_dpbf16_ps(part[i], value, (__m512bh)_mm512_loadu_si512(x + i * width + 32 * shift));
        }
        const __m512 scale = wide_scales(w, scales, start, count, which);
        EACH total[i] = _mm512_fmadd_ps(part[i], scale, total[i]);
    }
    EACH out[i * w->n] = _mm512_reduce_add_ps(total[i]);
}

FOR_EACH_COUNT(HALF, half_nf4, uint16_t)

/* ---------------------------------------------------------------- AVX2: 8 lanes */

#define NARROW __attribute__((target("avx2,fma")))

NARROW static inline __m256i narrow_mask(int64_t lanes)
{
    const __m256i lane = _mm256_set_epi32(7, 6, 5, 4, 3, 2, 1, 0);
    return _mm256_cmpgt_epi32(_mm256_set1_epi32((int)lanes), lane);
}

NARROW static inline float narrow_sum(__m256 v)
{
    __m128 half = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    half = _mm_add_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_add_ss(half, _mm_shuffle_ps(half, half, 1)));
}

/* Sixteen codes in two tables of eight: the index's bit 3, moved to the sign, chooses between them. */
#define NARROW_CODE(packed, shift)                                                              \
    _mm256_blendv_ps(_mm256_permutevar8x32_ps(below, _mm256_srli_epi32(packed, 4 * (shift))),   \
                     _mm256_permutevar8x32_ps(above, _mm256_srli_epi32(packed, 4 * (shift))),   \
                     _mm256_castsi256_ps(_mm256_slli_epi32(packed, 28 - 4 * (shift))))

INLINE NARROW void narrow_nf4_n(const Weight *w, int64_t row, const float *x, int64_t width, const int m, float *out)
{
    const __m256 below = _mm256_loadu_ps(NF4_CODE), above = _mm256_loadu_ps(NF4_CODE + 8);
    const uint8_t *values = w->values + row * row_bytes(w);
    const float *scales = w->scales + row * (w->k / w->block);
    __m256 total[MANY], part[MANY];
    EACH total[i] = _mm256_setzero_ps();
    for (int64_t start = 0; start < w->k; start += 64, x += 64) {
        const int64_t count = w->k - start < 64 ? w->k - start : 64;
        ASK_AHEAD(values + start / 2);
        const __m256i packed = _mm256_maskload_epi32((const int *)(values + start / 2), narrow_mask(count / 8));
        const __m256 first = NARROW_CODE(packed, 0);
        EACH part[i] = _mm256_mul_ps(first, _mm256_loadu_ps(x + i * width));
#pragma GCC unroll 7
        for (int shift = 1; shift < 8; shift++) {
            const __m256 value = NARROW_CODE(packed, shift);
            EACH part[i] = _mm256_fmadd_ps(value, _mm256_loadu_ps(x + i * width + 8 * shift), part[i]);
        }
        /* Of blocks of 32 the upper four lanes are the second, where the row still has one. */
        const float *here = scales + start / w->block;
        const float second = w->block == 32 && count > 32 ? here[1] : here[0];
        const __m256 scale = _mm256_set_m128(_mm_set1_ps(second), _mm_set1_ps(here[0]));
        EACH total[i] = _mm256_fmadd_ps(part[i], scale, total[i]);
    }
    EACH out[i * w->n] = narrow_sum(total[i]);
}

INLINE NARROW void narrow_bf16_n(const Weight *w, int64_t row, const float *x, int64_t width, const int m, float *out)
{
    const uint8_t *values = w->values + row * row_bytes(w);
    const __m256i upper = _mm256_set1_epi32((int)0xffff0000u);
    __m256 even[MANY], odd[MANY];
    EACH even[i] = odd[i] = _mm256_setzero_ps();
    for (int64_t start = 0; start < w->k; start += 16, x += 16) {
        const int64_t count = w->k - start < 16 ? w->k - start : 16;
        ASK_AHEAD(values + 2 * start);
        const __m256i pair = _mm256_maskload_epi32((const int *)(values + 2 * start), narrow_mask(count / 2));
        const __m256 low = _mm256_castsi256_ps(_mm256_slli_epi32(pair, 16));
        const __m256 high = _mm256_castsi256_ps(_mm256_and_si256(pair, upper));
        EACH even[i] = _mm256_fmadd_ps(low, _mm256_loadu_ps(x + i * width), even[i]);
        EACH odd[i] = _mm256_fmadd_ps(high, _mm256_loadu_ps(x + i * width + 8), odd[i]);
    }
    EACH out[i * w->n] = narrow_sum(_mm256_add_ps(even[i], odd[i]));
}

/* k is a multiple of 32. */
INLINE NARROW void narrow_int8_n(const Weight *w, int64_t row, const float *x, int64_t width, const int m, float *out)
{
    const uint8_t *values = w->values + row * row_bytes(w);
    __m256 even[MANY], odd[MANY];
    EACH even[i] = odd[i] = _mm256_setzero_ps();
    for (int64_t start = 0; start < w->k; start += 16, x += 16) {
        ASK_AHEAD(values + start);
        const __m128i bytes = _mm_loadu_si128((const __m128i *)(values + start));
        const __m256 low = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes));
        const __m256 high = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_srli_si128(bytes, 8)));
        EACH even[i] = _mm256_fmadd_ps(low, _mm256_loadu_ps(x + i * width), even[i]);
        EACH odd[i] = _mm256_fmadd_ps(high, _mm256_loadu_ps(x + i * width + 8), odd[i]);
    }
    EACH out[i * w->n] = w->scales[row] * narrow_sum(_mm256_add_ps(even[i], odd[i]));
}

FOR_EACH_COUNT(NARROW, narrow_nf4, float)
FOR_EACH_COUNT(NARROW, narrow_bf16, float)
FOR_EACH_COUNT(NARROW, narrow_int8, float)

/* Up to `MANY` arranged rows of x times one row of the weight. */
static void some_rows(const Weight *w, int level, int64_t row, const float *x, int64_t width, int m, float *out)
{
    if (level == AVX512_BF16)
        half_nf4(w, row, (const uint16_t *)x, 2 * width, m, out);
    else if (level == AVX512)
        (w->kind == NF4 ? wide_nf4 : w->kind == BF16 ? wide_bf16 : wide_int8)(w, row, x, width, m, out);
    else
        (w->kind == NF4 ? narrow_nf4 : w->kind == BF16 ? narrow_bf16 : narrow_int8)(w, row, x, width, m, out);
}

/* out (m, n) = x (m, k) times the weight (n, k) transposed. 0, or -1 where it cannot be done: no memory, or no path. */
static int product(const Weight *w, int64_t m, const float *x, float *out, int threads, int level)
{
    if (level == NONE || level > best_level()) return -1;
    const int lanes = level == AVX512_BF16 ? 32 : level == AVX512 ? 16 : 8;
    const int in_lane = w->kind == INT8 ? 1 : w->kind == BF16 ? 2 : level == AVX512_BF16 ? 4 : 8;
    const int64_t step = lanes * in_lane;
    const int64_t width = (w->k + step - 1) / step * step;
    float *ordered = malloc((size_t)(m * width) * sizeof *ordered);
    if (!ordered) return -1;
    for (int64_t i = 0; i < m; i++) {
        arrange(x + i * w->k, w->k, w->kind, lanes, in_lane, ordered + i * width);
        if (level == AVX512_BF16) halve(ordered + i * width, width);
    }
    /* Each thread takes one run of rows: it reads on and on. */
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t row = 0; row < w->n; row++)
        for (int64_t i = 0; i < m; i += MANY)
            some_rows(w, level, row, ordered + i * width, width, m - i < MANY ? (int)(m - i) : MANY,
                      out + i * w->n + row);
    free(ordered);
    return 0;
}

#else

static int product(const Weight *w, int64_t m, const float *x, float *out, int threads, int level)
{
    (void)w, (void)m, (void)x, (void)out, (void)threads, (void)level;
    return -1;
}

#endif

/* x (m, k) float32; packed (n, k / 2); scales (n, k / block) float32; out (m, n) float32; `block` is at least 32.
 * At level AVX512_BF16 the values of x must be bfloat16 ones, and the codes are rounded to such. */
int nf4_product(int64_t m, int64_t n, int64_t k, int64_t block, const float *x, const uint8_t *packed,
                const float *scales, float *out, int threads, int level)
{
    const Weight weight = {NF4, n, k, block, packed, scales};
    return product(&weight, m, x, out, threads, level);
}

/* x (m, k) float32; values (n, k) bfloat16, k even; out (m, n) float32. */
int bf16_product(int64_t m, int64_t n, int64_t k, const float *x, const uint8_t *values, float *out, int threads,
                 int level)
{
    const Weight weight = {BF16, n, k, 0, values, NULL};
    return product(&weight, m, x, out, threads, level < AVX512 ? level : AVX512);
}

/* x (m, k) float32; values (n, k) int8, k a multiple of 32; scales (n,) float32; out (m, n) float32. */
int int8_product(int64_t m, int64_t n, int64_t k, const float *x, const uint8_t *values, const float *scales,
                 float *out, int threads, int level)
{
    const Weight weight = {INT8, n, k, 0, values, scales};
    return product(&weight, m, x, out, threads, level < AVX512 ? level : AVX512);
}
