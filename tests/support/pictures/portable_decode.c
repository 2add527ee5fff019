/* Decodes JPEGs with our own decoder alone, and prints a hash of the pixels of each: what every compiler and every CPU must
 * print alike. Needs the headers of libjpeg-turbo and not the library, so that it can be built for other machines.
 *
 * portable_decode SIZE [FILE HEIGHT WIDTH TOP LEFT BOX_HEIGHT BOX_WIDTH FLIP]... */
#include "../../../pipeline/loader/native/decode.c"

#define STUB(type, name, ...) \
    type name(__VA_ARGS__) { abort(); }
STUB(struct jpeg_error_mgr *, jpeg_std_error, struct jpeg_error_mgr *err)
STUB(void, jpeg_CreateDecompress, j_decompress_ptr info, int version, size_t size)
STUB(void, jpeg_mem_src, j_decompress_ptr info, const unsigned char *data, unsigned long length)
STUB(int, jpeg_read_header, j_decompress_ptr info, boolean require)
STUB(boolean, jpeg_start_decompress, j_decompress_ptr info)
STUB(void, jpeg_crop_scanline, j_decompress_ptr info, JDIMENSION *x, JDIMENSION *width)
STUB(JDIMENSION, jpeg_skip_scanlines, j_decompress_ptr info, JDIMENSION lines)
STUB(JDIMENSION, jpeg_read_scanlines, j_decompress_ptr info, JSAMPARRAY lines, JDIMENSION most)
STUB(void, jpeg_destroy_decompress, j_decompress_ptr info)

int main(int argc, char **argv) {
    int size = atoi(argv[1]);
    uint8_t *out = malloc((size_t)3 * size * size);
    baseline *state = calloc(1, sizeof(baseline));
    for (char **one = argv + 2; one + 8 <= argv + argc; one += 8) {
        FILE *file = fopen(one[0], "rb");
        if (!file) return 2;
        fseek(file, 0, SEEK_END);
        size_t length = (size_t)ftell(file);
        rewind(file);
        uint8_t *data = malloc(length);
        if (fread(data, 1, length, file) != length) return 2;
        fclose(file);
        view v = {atoi(one[1]), atoi(one[2]), atoi(one[3]), atoi(one[4]), atoi(one[5]), atoi(one[6]), size, size, 0, 0, atoi(one[7])};
        if (is_bad(&v, size)) return 2;
        int status = decode_baseline(state, data, length, &v, size, out);
        uint64_t hash = 14695981039346656037ull; /* FNV-1a */
        for (size_t i = 0; status == OK && i < (size_t)3 * size * size; i++) hash = (hash ^ out[i]) * 1099511628211ull;
        printf("%d %016llx\n", status, (unsigned long long)hash);
        free(data);
    }
    return 0;
}
