// Runs the kernels on made-up numbers and prints a hash of each result, so that instruction sets can be compared
// where no Python is, as under an emulator. Compiled with the kernels' own flags; see test_targets.py.
#include <unistd.h>

#include <cstdio>
#include <vector>

#include "kernels.cpp"

namespace {

uint32_t state = 1;
uint32_t next() { return (state = state * 1664525 + 1013904223) >> 8; }
// In -1..1, of 23 bits.
float number() { return float(int32_t(next()) - (1 << 23)) / (1 << 23); }

std::vector<std::vector<char>> kept;
template <typename T, typename F>
T* filled(int64_t count, F value) {
  kept.emplace_back(count * sizeof(T) + 64);
  T* made = (T*)kept.back().data();
  for (int64_t i = 0; i < count; i++) made[i] = T(value());
  return made;
}
float* numbers(int64_t count) { return filled<float>(count, number); }

bf16 upper(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return bits >> 16;
}

Matrix matrix(Format format, int64_t outputs, int64_t inputs, bool compressed = false, bool halved = false) {
  Matrix m{format, outputs, inputs};
  const int64_t blocks = up(outputs, 32) / 32;
  const float near = 2.0f / float(inputs);
  m.bias = numbers(outputs);
  if (compressed) {
    const uint8_t high[] = {0x3c, 0xbc, 0x3d, 0xbd, 0x3b, 0xbb, 0x3a, 0xba, 0x39, 0xb9, 0x3e, 0xbe, 0x38, 0xb8, 0, 0x80};
    int place = -1;
    m.high = filled<uint8_t>(16, [&] { return high[++place]; });
    m.data = filled<uint8_t>(blocks * m.steps() * 1536 + L2_PREFETCH, next);
    m.outliers = filled<Outlier>(blocks, [&] { return Outlier{uint32_t(next() % (32 * inputs)), upper(number())}; });
    int64_t block = 0;
    m.first = filled<int64_t>(blocks + 1, [&] { return block++; });
  } else if (halved) {
    m.halved = 1;
    m.data = filled<bf16>(blocks * 32 * inputs + L2_PREFETCH, [] { return upper(number()); });
  } else if (format == FP32) {
    m.data = numbers(blocks * 32 * inputs + L2_PREFETCH);
  } else if (format == BF16) {
    m.data = filled<bf16>(blocks * m.steps() * 1024 + L2_PREFETCH, [] { return upper(number()); });
  } else {
    m.data = filled<uint8_t>(blocks * m.steps() * m.step() + L2_PREFETCH, next);
    if (format == INT8)
      m.scale = filled<float>(blocks * 32, [&] { return number() * near / 128; });
    else
      m.scale = filled<bf16>(blocks * 32 * m.steps(), [&] { return upper(number() * near / 128); });
  }
  return m;
}

void tell(const char* what, int64_t a, int64_t b, const float* x, int64_t count) {
  uint64_t hash = 14695981039346656037u;
  for (int64_t i = 0; i < count; i++) {
    uint32_t bits;
    std::memcpy(&bits, x + i, 4);
    if (!std::isfinite(x[i])) std::printf("not finite: "), i = count;
    hash = (hash ^ bits) * 1099511628211u;
  }
  std::printf("%s %lld %lld %016llx\n", what, (long long)a, (long long)b, (unsigned long long)hash);
}

void products() {
  const char* names[] = {"fp32", "bf16", "int8", "int4"};
  for (int64_t format = FP32; format <= INT4; format++)
    for (int64_t compressed = 0; compressed < (format <= BF16 ? 2 : 1); compressed++)
      for (int64_t inputs : {48, 1104}) {
        const Matrix m = matrix(Format(format), 80, inputs, compressed);
        for (int64_t rows : {1, 2, 3, 5, 20, 70}) {
          float* x = numbers(rows * inputs);
          x[0] = 1e-40f, x[1] = -3e30f, x[2] = 1.2e-38f;
          std::vector<float> out(rows * 80);
          nextstep_linear(&m, rows, x, out.data(), 2);
          tell(names[format], rows, inputs + compressed, out.data(), rows * 80);
        }
      }
}

void halved() {
  for (int64_t rows : {1, 2, 3, 7, 20}) {
    const Matrix m = matrix(FP32, 80, 304, false, true);
    std::vector<float> out(rows * 80);
    nextstep_linear(&m, rows, numbers(rows * 304), out.data(), 2);
    tell("halved", rows, 304, out.data(), rows * 80);
  }
}

void layers(Format format, bool half) {
  const int64_t E = 64, H = 4, G = 2, d = 16, M = 96, thread_scratch = 40, count = 2;
  std::vector<Layer> own;
  for (int64_t l = 0; l < count; l++)
    own.push_back({matrix(format, H * d, E), matrix(format, G * d, E), matrix(format, G * d, E),
                   matrix(format, E, H * d), matrix(format, M, E), matrix(format, M, E), matrix(format, E, M),
                   numbers(E), numbers(E)});
  const Backbone net{count, E, H, G, d, M, half, 1e-6, own.data(), numbers(E)};
  const int64_t size = half ? 2 : 4;
  char* cache = filled<char>(count * 2 * G * thread_scratch * d * size, [] { return 0; });
  std::vector<Place> places;
  for (int64_t at = 0; at < 35; at++)
    places.push_back({cache, thread_scratch * d, G * thread_scratch * d, 2 * G * thread_scratch * d, at > 20 ? 3 : 0, at, numbers(2 * d)});
  float* x = numbers(35 * E);
  nextstep_backbone_step(&net, 35, places.data(), x, 2);
  tell("layers", format, half, x, 35 * E);
}

void head(Format format) {
  const int64_t E = 64, W = 48, D = 64, count = 2, calls = 3, draws = 2;
  std::vector<Block> blocks;
  for (int64_t b = 0; b < count; b++)
    blocks.push_back({matrix(format, 3 * W, W), matrix(format, W, W), matrix(format, W, W), numbers(W), numbers(W)});
  const Head own{E, W, D, count, 1e-6, 1e-6, blocks.data(), matrix(format, E, E), matrix(format, W, E),
                 matrix(FP32, W, D), matrix(format, 2 * W, W), matrix(FP32, D, W)};
  std::vector<Picture> pictures;
  for (int64_t p = 0; p < 3; p++)
    pictures.push_back({numbers((calls + 1) * (draws + calls)), draws, calls - p, p % 2 + 1, numbers(2),
                        numbers((draws + calls) * D), numbers(2 * E), numbers(calls * W), p != 1});
  std::vector<float> tokens(3 * D);
  nextstep_sample(&own, 3, pictures.data(), 4, tokens.data(), 2);
  tell("head", format, 0, tokens.data(), 3 * D);
}

void maps() {
  const int64_t H = 7, W = 11;
  for (int64_t kind : {POINT, SAME, DOUBLED, HALVED})
    for (int64_t C : {16, 48}) {
      const int64_t N = 64 - C, products = kind == SAME ? 16 : kind == DOUBLED ? 9 : 1;
      const float* weights = numbers(products * up(N, 32) * (kind == HALVED ? 9 : 1) * C + L2_PREFETCH);
      const Convolution c{kind, H, W, C, N, weights, numbers(N)};
      std::vector<float> out(4 * H * W * N);
      const float *x = numbers(H * W * C), *add = numbers(4 * H * W * N);
      nextstep_convolve(&c, x, add, out.data(), 2);
      tell("map", kind, C, out.data(), out.size());
    }
  for (int64_t silu : {0, 1}) {
    const GroupNorm g{H * W * 4, 48, 6, silu, 1e-6, numbers(48), numbers(48)};
    std::vector<float> out(g.pixels * 48);
    nextstep_group_norm(&g, numbers(g.pixels * 48), out.data(), 2);
    tell("norm", g.pixels, silu, out.data(), out.size());
  }
  for (int64_t C : {16, 64}) {
    std::vector<float> out(H * W * C);
    nextstep_spatial_attention(H * W, C, numbers(3 * H * W * C), out.data(), 2);
    tell("places", H * W, C, out.data(), out.size());
  }
}

}  // namespace

int main() {
#ifdef NEXTSTEP_TILES
  syscall(158, 0x1023, 18);  // asks Linux for the matrix units, as targets.py does
#endif
  products();
  for (Format format : {FP32, BF16, INT8, INT4}) {
    layers(format, format != FP32);
    head(format);
  }
  maps();
  halved();
}
