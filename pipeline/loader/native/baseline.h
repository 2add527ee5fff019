/* Baseline JPEG in YCbCr -> crop -> antialiased resize -> flip -> RGB, for nearly all photographs: Huffman-coded, 8 bits,
 * one scan of three components, 4:4:4, 4:2:2, 4:4:0 or 4:2:0. All other images, and above all damaged ones, are left to
 * libjpeg, which then decodes or rejects them.
 *
 * Three things make it faster than decoding to pixels and resizing those: entropy.h; blocks outside the crop are parsed, but
 * not transformed; and luma and chroma are resized each at its own resolution, so that only pixels of the output are converted to RGB. Planes are
 * stored column by column, as the second pass of the inverse DCT leaves them, so that all later steps process eight
 * neighbours at a time.
 */

typedef float lanes __attribute__((vector_size(32)));
typedef int32_t lanes_int __attribute__((vector_size(32)));
typedef int16_t lanes_short __attribute__((vector_size(16)));
typedef uint64_t two_words __attribute__((vector_size(16)));
typedef uint8_t bytes_16 __attribute__((vector_size(16))), bytes_32 __attribute__((vector_size(32)));

enum { USE_LIBJPEG = 6 };

typedef struct {
    jpeg coded; /* first: a pointer to it is one to the whole */
    float factor[4][64];
} baseline;

/* --- the inverse DCT (Arai, Agui and Nakajima 1988, in floats) --- */

static inline __attribute__((always_inline)) void idct_8(lanes *x) {
    lanes even = x[0] + x[4], odd = x[0] - x[4], sum = x[2] + x[6];
    lanes turn = (x[2] - x[6]) * 1.414213562f - sum;
    lanes a = even + sum, d = even - sum, b = odd + turn, c = odd - turn;
    lanes z13 = x[5] + x[3], z10 = x[5] - x[3], z11 = x[1] + x[7], z12 = x[1] - x[7];
    lanes t7 = z11 + z13, z5 = (z10 + z12) * 1.847759065f;
    lanes t6 = z5 - z10 * 2.613125930f - t7;
    lanes t5 = (z11 - z13) * 1.414213562f - t6;
    lanes t4 = z5 - z12 * 1.082392200f - t5;
    x[0] = a + t7, x[7] = a - t7, x[1] = b + t6, x[6] = b - t6;
    x[2] = c + t5, x[5] = c - t5, x[3] = d + t4, x[4] = d - t4;
}

DEFINE_TRANSPOSE(transpose_8, lanes, lanes_int)

/* Eight bytes <-> eight floats. Written out, because the compiler uses eight registers for the conversion otherwise. */
static inline __attribute__((always_inline)) lanes read_8(const uint8_t *from) {
    const bytes_16 zero = {0};
    two_words pair = {0, 0};
    memcpy(&pair, from, 8);
    lanes_short shorts = (lanes_short)SHUFFLE(bytes_16, (bytes_16)pair, zero, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6,
                                              22, 7, 23);
    return __builtin_convertvector(__builtin_convertvector(shorts, lanes_int), lanes);
}

static inline __attribute__((always_inline)) void write_8(uint8_t *to, lanes value) {
    const lanes most = {255, 255, 255, 255, 255, 255, 255, 255};
    lanes_int above = value > most, inside = value > 0.0f;
    lanes clamped = (lanes)((above & (lanes_int)most) | (~above & inside & (lanes_int)value));
    bytes_32 words = (bytes_32)__builtin_convertvector(clamped, lanes_int);
    lanes_int whole = (lanes_int)SHUFFLE(bytes_32, words, words, 0, 4, 8, 12, 0, 4, 8, 12, 0, 4, 8, 12, 0, 4, 8, 12, 16, 20,
                                         24, 28, 16, 20, 24, 28, 16, 20, 24, 28, 16, 20, 24, 28);
    int32_t halves[2] = {whole[0], whole[4]};
    memcpy(to, halves, 8);
}

static inline __attribute__((always_inline)) void write_block(const int32_t *coefficient, const float *factors, int last,
                                                              uint8_t *to, size_t stride) {
    lanes x[8];
    if (last <= 1) {
        lanes flat = {0};
        flat += (float)coefficient[0] * factors[0] + 128.5f;
        for (int i = 0; i < 8; i++) write_8(to + i * stride, flat);
        return;
    }
    for (int i = 0; i < 8; i++) {
        lanes_int line;
        lanes factor;
        memcpy(&line, coefficient + 8 * i, sizeof line);
        memcpy(&factor, factors + 8 * i, sizeof factor);
        x[i] = __builtin_convertvector(line, lanes) * factor;
    }
    idct_8(x);
    transpose_8(x);
    idct_8(x);
    for (int i = 0; i < 8; i++) write_8(to + i * stride, x[i] + 128.5f);
}

/* The steps of the quantisers, times what the inverse DCT leaves out. */
static void make_factors(baseline *state) {
    static const double SCALE[8] = {1.0, 1.387039845, 1.306562965, 1.175875602, 1.0, 0.785694958, 0.541196100, 0.275899379};
    for (int i = 0; i < 4; i++)
        for (int k = 0; k < 64 && state->coded.has_quantiser[i]; k++)
            state->factor[i][k] = (float)(state->coded.step[i][k] * SCALE[k >> 3] * SCALE[k & 7] / 8);
}

static inline __attribute__((always_inline)) int write_to_plane(const jpeg *s, const part *p, int column, int row,
                                                                const int32_t *coefficient, int last) {
    const float *factor = ((const baseline *)s)->factor[p->quantiser];
    uint8_t *to = p->plane + 8 * (size_t)(column - p->block_left) * p->stride + 8 * (size_t)(row - p->block_top);
    write_block(coefficient, factor, last, to, p->stride);
    return 1;
}

/* Decodes the blocks of the crop into the planes. Returns whether all codes were valid. */
FAST static int read_planes(jpeg *s, const uint8_t *at, const uint8_t *end, int height, int width, uint8_t *room) {
    int64_t leftover;
    return read_scan(s, at, end, height, width, room, write_to_plane, &leftover) != NULL;
}

/* --- resize and colour --- */

static int clamped(int value, int limit) { return value < 0 ? 0 : value < limit ? value : limit - 1; }

/* The filter for a plane of half the resolution: as if it were first doubled the way libjpeg does, then filtered by `full`.
 * is_fancy: three quarters of the nearer sample and one of the farther, else each sample twice. */
static int halve_filter(filter *half, const filter *full, int size, int limit, int is_fancy) {
    const float nearer = is_fancy ? 0.75f : 1.0f;
    half->most = full->most / 2 + 3;
    half->start = malloc(sizeof(int) * size);
    half->count = malloc(sizeof(int) * size);
    half->weight = calloc((size_t)size * half->most, sizeof(float));
    half->first = limit;
    half->last = 0;
    if (!half->start || !half->count || !half->weight) return NO_MEMORY;
    for (int i = 0; i < size; i++) {
        int from = full->start[i], to = from + full->count[i];
        int first = clamped((from - 1) >> 1, limit), last = clamped(to >> 1, limit);
        float *weight = half->weight + (size_t)i * half->most;
        for (int k = from; k < to; k++) {
            float share = full->weight[(size_t)i * full->most + k - from];
            weight[clamped(k >> 1, limit) - first] += nearer * share;
            weight[clamped(k & 1 ? (k >> 1) + 1 : (k >> 1) - 1, limit) - first] += (1 - nearer) * share;
        }
        half->start[i] = first;
        half->count[i] = last - first + 1;
        if (first < half->first) half->first = first;
        if (last + 1 > half->last) half->last = last + 1;
    }
    return OK;
}

/* Horizontally: plane -> out, float [rows, rounded up to 8][width], width a multiple of 8. */
FAST static void resize_columns(float *out, int width, const part *p, const filter *f, int first_row, int rows, int size,
                                int flip) {
    const uint8_t *plane = p->plane + first_row - 8 * p->block_top;
    for (int x = 0; x < width; x += 8)
        for (int y = 0; y < rows; y += 8) {
            lanes sum[8];
            for (int j = 0; j < 8; j++) {
                lanes total = {0};
                int place = x + j < size ? (flip ? size - 1 - (x + j) : x + j) : 0;
                const float *weight = f->weight + (size_t)place * f->most;
                const uint8_t *from = plane + (size_t)(f->start[place] - 8 * p->block_left) * p->stride + y;
                for (int k = 0; k < f->count[place]; k++) total += read_8(from + k * p->stride) * weight[k];
                sum[j] = total;
            }
            transpose_8(sum);
            for (int j = 0; j < 8; j++) memcpy(out + (size_t)(y + j) * width + x, &sum[j], sizeof sum[j]);
        }
}

static inline __attribute__((always_inline)) lanes add_lines(const float *lines, int width, const float *weight, int count) {
    lanes total = {0};
    for (int k = 0; k < count; k++) {
        lanes value;
        memcpy(&value, lines + (size_t)k * width, sizeof value);
        total += value * weight[k];
    }
    return total;
}

/* Vertically, and to RGB (JFIF's formula). lines: of each part, as from resize_columns; colour: room for 3 * width. */
FAST static void resize_lines(uint8_t *out, float *const *lines, int width, const filter *f, int size, uint8_t *colour) {
    uint8_t *red = colour, *green = colour + width, *blue = colour + 2 * width;
    for (int y = 0; y < size; y++) {
        for (int x = 0; x < width; x += 8) {
            lanes value[PARTS];
            for (int i = 0; i < PARTS; i++)
                value[i] = add_lines(lines[i] + (size_t)(f[i].start[y] - f[i].first) * width + x, width,
                                     f[i].weight + (size_t)y * f[i].most, f[i].count[y]);
            lanes luma = value[0] + 0.5f, b = value[1] - 128.0f, r = value[2] - 128.0f;
            write_8(red + x, luma + 1.402f * r);
            write_8(green + x, luma - 0.344136f * b - 0.714136f * r);
            write_8(blue + x, luma + 1.772f * b);
        }
        uint8_t *restrict to = out + (size_t)3 * size * y;
        for (int x = 0; x < size; x++) {
            to[3 * x] = red[x];
            to[3 * x + 1] = green[x];
            to[3 * x + 2] = blue[x];
        }
    }
}

/* Returns OK, NO_MEMORY, or USE_LIBJPEG for an image that this decoder doesn't handle. */
static int decode_baseline(baseline *state, const uint8_t *data, size_t length, const view *v, int size, uint8_t *out) {
    jpeg *s = &state->coded;
    const uint8_t *end = data + length, *scan = read_headers(s, data, end, v->height, v->width);
    if (!scan) return USE_LIBJPEG;
    make_factors(state);
    filter across[PARTS] = {{0}}, down[PARTS] = {{0}};
    float *lines[PARTS] = {NULL};
    int width = (size + 7) & ~7, status = NO_MEMORY;
    uint8_t *colour = malloc(3 * (size_t)width), *room = malloc((size_t)(end - scan) + MARGIN);
    for (int i = 0; i < PARTS; i++) s->parts[i].plane = NULL;
    if (!colour || !room) goto end;
    for (int i = 0; i < PARTS; i++) {
        part *p = &s->parts[i];
        int halves_width = s->h != p->h, halves_height = s->v != p->v;
        int is_fancy = !halves_width || (v->width + 1) / 2 > 2; /* jdsample.c: planes of one or two columns aren't */
        if (halves_width ? halve_filter(&across[i], &across[0], size, (v->width + 1) / 2, is_fancy)
                         : make_filter(&across[i], v->left, v->box_width, v->full_width, v->out_left, size, v->width))
            goto end;
        if (halves_height ? halve_filter(&down[i], &down[0], size, (v->height + 1) / 2, is_fancy)
                          : make_filter(&down[i], v->top, v->box_height, v->full_height, v->out_top, size, v->height))
            goto end;
        p->block_left = across[i].first / 8, p->block_right = (across[i].last + 7) / 8;
        p->block_top = down[i].first / 8, p->block_bottom = (down[i].last + 7) / 8;
        p->stride = 8 * (size_t)(p->block_bottom - p->block_top);
        int rows = (down[i].last - down[i].first + 7) & ~7;
        p->plane = malloc(p->stride * 8 * (size_t)(p->block_right - p->block_left) + 8); /* + 8: columns are read by eights */
        lines[i] = malloc(sizeof(float) * (size_t)rows * width);
        if (!p->plane || !lines[i]) goto end;
    }
    status = USE_LIBJPEG;
    if (!read_planes(s, scan, end, v->height, v->width, room)) goto end;
    for (int i = 0; i < PARTS; i++)
        resize_columns(lines[i], width, &s->parts[i], &across[i], down[i].first, down[i].last - down[i].first, size, v->flip);
    resize_lines(out, lines, width, down, size, colour);
    status = OK;
end:
    for (int i = 0; i < PARTS; i++) {
        free_filter(&across[i]);
        free_filter(&down[i]);
        free(lines[i]);
        free(s->parts[i].plane);
    }
    free(colour);
    free(room);
    return status;
}
