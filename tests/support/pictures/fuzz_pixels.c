/* Feeds pipeline/dataset/native/pixels.c damaged JPEGs: ROUNDS times, one of FILES is cut, overwritten, or both, and decoded to
 * the size that it had, or another one; what is decoded is looked at. Then images of any size. Built with
 * -fsanitize=address,undefined; prints how many were decoded, and how many left to libjpeg. */
#include "../../../pipeline/dataset/native/pixels.c"
#include "fuzz.h"

static void size_of(const uint8_t *data, size_t length, int *height, int *width) {
    for (size_t i = 0; i + 9 < length; i++)
        if (data[i] == 0xFF && data[i + 1] == 0xC0) {
            *height = data[i + 5] << 8 | data[i + 6];
            *width = data[i + 7] << 8 | data[i + 8];
            return;
        }
}

/* Each array is exactly as long as it must be, so that the sanitizer sees a byte more. */
static void look_at(const uint8_t *pixels, int height, int width) {
    int64_t *histogram = malloc(768 * sizeof(int64_t)), count = 0;
    double *grey = malloc(32 * 32 * sizeof(double));
    uint8_t *thumbnail = malloc(16 * 16), *digest = malloc(32);
    char prefix[32];
    snprintf(prefix, sizeof prefix, "%dx%d:", height, width);
    if (!pixel_facts(pixels, height, width, prefix, histogram, grey, thumbnail, digest)) abort();
    for (int i = 0; i < 768; i++) count += histogram[i];
    if (count != 3 * (int64_t)height * width) abort();
    free(histogram);
    free(grey);
    free(thumbnail);
    free(digest);
}

int main(int argc, char **argv) {
    int rounds = atoi(argv[1]), decoded = 0, left = 0;
    for (int round = 0; round < rounds; round++) {
        size_t length;
        uint8_t *whole = read_file(argv[2 + draw(argc - 2)], &length);
        int height = 1, width = 1;
        if (draw(2)) size_of(whole, length, &height, &width); /* as it was, whatever the bytes say */
        uint32_t kind = draw(4);
        for (uint32_t n = kind ? 1 + draw(kind == 1 ? 2 : 20) : 0; n; n--)
            whole[draw(draw(3) || length < 700 ? (uint32_t)length : 700)] = (uint8_t)draw(256);
        if (kind == 3) length = draw((uint32_t)length);
        uint8_t *data = malloc(length ? length : 1);
        memcpy(data, whole, length);
        if (draw(4)) size_of(data, length, &height, &width);
        if (height > 2000 || width > 2000) height = width = 1;
        uint8_t *out = malloc(3 * (size_t)height * width + 1);
        if (decode_jpeg(data, length, height, width, out)) {
            decoded++;
            look_at(out, height, width);
        } else
            left++;
        free(out);
        free(data);
        free(whole);
    }
    for (int round = 0; round < 300; round++) {
        int height = 1 + (int)draw(draw(4) ? 70 : 3000), width = 1 + (int)draw(draw(4) ? 70 : 700);
        uint8_t *pixels = malloc(3 * (size_t)height * width);
        for (size_t i = 0; i < 3 * (size_t)height * width; i++) pixels[i] = (uint8_t)(i * 37 + (size_t)round);
        look_at(pixels, height, width);
        free(pixels);
    }
    printf("decoded %d left %d\n", decoded, left);
    return 0;
}
