/* Pixels -> histogram, SHA-256, and a small grey square, while they are in the cache. The square is, to the bit, PIL's
 *     image.resize((SQUARE, SQUARE), BOX or, if a side is shorter, BILINEAR, reducing_gap=2.0).convert("L")
 * which is: means of whole blocks of pixels; a resize, horizontally and then vertically, by weights of 22 bits; ITU-R 601.
 */

enum { SQUARE = 32, LEVELS = 256, WEIGHT_BITS = 22 };
enum { MOST_REDUCED = 128, MOST_TAPS = 12 }; /* pixels of a side after the means; weights of one output */

/* --- means of blocks --- */

/* What a sum of `area` bytes is multiplied with, in PIL's own rounding, to get 2^24 times their mean. */
static uint32_t reciprocal(uint32_t area) { return (uint32_t)(4294967296.0f / (float)(area << 8)); }

FAST static void add_line(uint16_t *restrict sums, const uint8_t *restrict line, size_t count) {
    for (size_t i = 0; i < count; i++) sums[i] += line[i];
}

/* How many pixels of a side of `size` become one, at least. */
static int block_side(int size) { return size < 4 * SQUARE ? 1 : size / (2 * SQUARE); }

/* The means of blocks of block_side pixels, fewer at the right and lower edges. sums: room for a line.
 * out: [MOST_REDUCED][MOST_REDUCED][3]. */
static void reduce(const uint8_t *pixels, int height, int width, uint16_t *sums, uint8_t *out) {
    int down = block_side(height), across = block_side(width);
    for (int top = 0, y = 0; top < height; top += down, y++) {
        int rows = height - top < down ? height - top : down;
        uint32_t totals[MOST_REDUCED][3] = {{0}};
        for (int first = 0; first < rows; first += LEVELS) { /* so many bytes fit in the 16 bits of a sum */
            memset(sums, 0, sizeof(uint16_t) * 3 * (size_t)width);
            for (int row = first; row < rows && row < first + LEVELS; row++)
                add_line(sums, pixels + 3 * (size_t)width * (top + row), 3 * (size_t)width);
            for (int left = 0, x = 0; left < width; left += across, x++)
                for (int k = left; k < left + across && k < width; k++)
                    for (int c = 0; c < 3; c++) totals[x][c] += sums[3 * k + c];
        }
        for (int left = 0, x = 0; left < width; left += across, x++) {
            uint32_t area = (uint32_t)rows * (width - left < across ? width - left : across), factor = reciprocal(area);
            for (int c = 0; c < 3; c++) out[(y * MOST_REDUCED + x) * 3 + c] = (uint8_t)(((totals[x][c] + area / 2) * factor) >> 24);
        }
    }
}

/* --- the resize --- */

typedef struct {
    int first[SQUARE], count[SQUARE];
    int32_t weight[SQUARE][MOST_TAPS];
} taps;

static double weight_at(double distance, int is_box) {
    if (is_box) return distance > -0.5 && distance <= 0.5;
    distance = distance < 0 ? -distance : distance;
    return distance < 1 ? 1 - distance : 0;
}

/* The weights that make [0, length) of `size` pixels to SQUARE ones. */
static void make_taps(taps *t, int size, float length, int is_box) {
    double scale = (double)length / SQUARE, stretch = scale < 1 ? 1 : scale, reach = (is_box ? 0.5 : 1) * stretch;
    for (int i = 0; i < SQUARE; i++) {
        double centre = (i + 0.5) * scale, total = 0, weights[MOST_TAPS];
        int from = (int)(centre - reach + 0.5), to = (int)(centre + reach + 0.5);
        if (from < 0) from = 0;
        if (to > size) to = size;
        t->first[i] = from;
        t->count[i] = to - from > MOST_TAPS ? MOST_TAPS : to - from;
        for (int k = 0; k < t->count[i]; k++) {
            weights[k] = weight_at((k + from - centre + 0.5) * (1 / stretch), is_box);
            total += weights[k];
        }
        for (int k = 0; k < t->count[i]; k++) {
            double share = total != 0 ? weights[k] / total : weights[k];
            t->weight[i][k] = (int32_t)(0.5 + share * (1 << WEIGHT_BITS));
        }
    }
}

/* Resizes one direction: `lines` lines, each of values `step` bytes apart, to SQUARE values. */
static void resize_by(const taps *t, const uint8_t *from, int lines, int line, int step, uint8_t *to, int to_line, int to_step) {
    for (int y = 0; y < lines; y++)
        for (int i = 0; i < SQUARE; i++)
            for (int c = 0; c < 3; c++) {
                int32_t sum = 1 << (WEIGHT_BITS - 1);
                const uint8_t *at = from + y * line + t->first[i] * step + c;
                for (int k = 0; k < t->count[i]; k++) sum += at[k * step] * t->weight[i][k];
                sum >>= WEIGHT_BITS;
                to[y * to_line + i * to_step + c] = (uint8_t)(sum < 0 ? 0 : sum > 255 ? 255 : sum);
            }
}

/* The means are resized in two steps; in Pillow 13's order, which depends on the sizes. small: [SQUARE][SQUARE][3]. */
static void resize(const uint8_t *reduced, int rows, int columns, const taps *vertical, const taps *horizontal, uint8_t *small) {
    uint8_t half[MOST_REDUCED * SQUARE * 3];
    if (rows > SQUARE && rows - SQUARE > 2 * (columns - SQUARE)) {
        resize_by(vertical, reduced, columns, 3, 3 * MOST_REDUCED, half, 3, 3 * MOST_REDUCED);
        resize_by(horizontal, half, SQUARE, 3 * MOST_REDUCED, 3, small, 3 * SQUARE, 3);
    } else {
        resize_by(horizontal, reduced, rows, 3 * MOST_REDUCED, 3, half, 3 * SQUARE, 3);
        resize_by(vertical, half, SQUARE, 3, 3 * SQUARE, small, 3, 3 * SQUARE);
    }
}

/* grey: [SQUARE][SQUARE]. sums: room for a line. */
static void grey_square(const uint8_t *pixels, int height, int width, uint16_t *sums, uint8_t *grey) {
    uint8_t reduced[MOST_REDUCED * MOST_REDUCED * 3], small[SQUARE * SQUARE * 3];
    int down = block_side(height), across = block_side(width), is_box = height >= SQUARE && width >= SQUARE;
    int rows = (height + down - 1) / down, columns = (width + across - 1) / across, is_square = height == SQUARE && width == SQUARE;
    if (!is_square) {
        taps horizontal, vertical;
        reduce(pixels, height, width, sums, reduced);
        make_taps(&horizontal, columns, (float)((double)width / across), is_box);
        make_taps(&vertical, rows, (float)((double)height / down), is_box);
        resize(reduced, rows, columns, &vertical, &horizontal, small);
    }
    const uint8_t *from = is_square ? pixels : small;
    for (int i = 0; i < SQUARE * SQUARE; i++)
        grey[i] = (uint8_t)((from[3 * i] * 19595 + from[3 * i + 1] * 38470 + from[3 * i + 2] * 7471 + 0x8000) >> 16);
}

/* Means of two by two values, of which halves go to the even number, as numpy's round has it. */
static void halve(const uint8_t *grey, uint8_t *thumbnail) {
    for (int i = 0; i < SQUARE * SQUARE / 4; i++) {
        const uint8_t *at = grey + i / (SQUARE / 2) * 2 * SQUARE + i % (SQUARE / 2) * 2;
        int sum = at[0] + at[1] + at[SQUARE] + at[SQUARE + 1], whole = sum / 4;
        thumbnail[i] = (uint8_t)(whole + (sum % 4 == 3 || (sum % 4 == 2 && whole % 2)));
    }
}

/* --- histogram --- */

/* Counters in four copies, for equal neighbours would wait for each other. */
typedef struct {
    uint32_t of[4][3][LEVELS];
} counters;

/* Counts the four bytes at `at + place`. `at` begins with a byte of channel `phase`, and place is a constant. */
static inline __attribute__((always_inline)) void count_4(counters *restrict n, const uint8_t *restrict at, int place, int phase) {
    for (int i = place; i < place + 4; i++) n->of[(i + phase) / 3 % 4][(i + phase) % 3][at[i]]++;
}

/* Counts whole pixels. */
static void count_pixels(counters *restrict n, const uint8_t *restrict pixels, size_t count) {
    for (size_t i = 0; i < count; i++)
        for (int c = 0; c < 3; c++) n->of[i % 4][c][pixels[3 * i + c]]++;
}

static void add_counters(const counters *n, int64_t *histogram) {
    for (int i = 0; i < 3 * LEVELS; i++) {
        int c = i / LEVELS, level = i % LEVELS;
        histogram[i] = (int64_t)n->of[0][c][level] + n->of[1][c][level] + n->of[2][c][level] + n->of[3][c][level];
    }
}
