// Runs a detector that `stratified3d export` wrote on a .bin file of points and prints its boxes.
//
//   cmake -B build -S projects/deploy -DCMAKE_PREFIX_PATH="$(python -c 'import torch; print(torch.utils.cmake_prefix_path)')"
//   cmake --build build
//   build/detect detector.pt2 sweep.bin        one line for each box: class, score, x y z dx dy dz yaw [vx vy]

#include <torch/torch.h>
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>
#include <torch/version.h>

#include <cmath>
#include <cstdio>
#include <fstream>
#include <regex>
#include <stdexcept>
#include <string>
#include <vector>

namespace {

// the text between the brackets or quotes that follow a key in the package's JSON
std::string value_of(const std::string& json, const std::string& key) {
  std::smatch found;
  const std::regex pattern("\"" + key + "\": (\\[[^\\]]*\\]|\"[^\"]*\"|[^,}]*)");
  if (!std::regex_search(json, found, pattern))
    throw std::runtime_error("the package does not say its " + key);
  return found[1];
}

std::vector<std::string> names_in(const std::string& list) {
  const std::regex pattern("\"([^\"]*)\"");
  std::vector<std::string> names;
  for (std::sregex_iterator it(list.begin(), list.end(), pattern), end; it != end; ++it)
    names.push_back((*it)[1]);
  return names;
}

torch::Tensor numbers_in(const std::string& list) {
  std::vector<float> numbers;
  const std::regex pattern("-?[0-9][0-9.eE+-]*");
  for (std::sregex_iterator it(list.begin(), list.end(), pattern), end; it != end; ++it)
    numbers.push_back(std::stof((*it)[0]));
  return torch::tensor(numbers);
}

// [P, 5] x, y, z, intensity and an age of 0; files of nuScenes have a ring index, which is left out
torch::Tensor read_points(const std::string& path) {
  std::ifstream file(path, std::ios::binary | std::ios::ate);
  if (!file) throw std::runtime_error("there is no point file " + path);
  const bool has_ring = path.size() > 8 && path.compare(path.size() - 8, 8, ".pcd.bin") == 0;
  const int64_t columns = has_ring ? 5 : 4;
  const int64_t bytes = file.tellg();
  if (bytes % (columns * sizeof(float)))
    throw std::runtime_error(path + " has " + std::to_string(bytes) + " bytes, which are no rows of " +
                             std::to_string(columns) + " numbers");
  const int64_t rows = bytes / (columns * sizeof(float));
  auto points = torch::empty({rows, columns});
  file.seekg(0);
  file.read(static_cast<char*>(points.data_ptr()), bytes);
  // the program asks for 2 rows or more; rows of NaN are no points
  auto padded = torch::full({rows + 2, 5}, NAN);
  padded.slice(0, 0, rows).slice(1, 0, 4).copy_(points.slice(1, 0, 4));
  padded.slice(0, 0, rows).select(1, 4).zero_();
  return padded;
}

void check_package(const std::string& json, const std::string& path) {
  const std::string torch = names_in(value_of(json, "torch")).at(0);
  const std::string here = std::string(TORCH_VERSION).substr(0, torch.size());
  if (here != torch)
    throw std::runtime_error(path + " was compiled by torch " + torch + " and this is libtorch " + TORCH_VERSION);
  const std::string device = names_in(value_of(json, "device")).at(0);
  if (device == "cuda" && !torch::cuda::is_available())
    throw std::runtime_error(path + " is a package for cuda, and this machine has no CUDA device");
}

// [P] number of the voxel that each point lies in, -1 where it lies in none
torch::Tensor voxels_of(const std::string& json, const torch::Tensor& points) {
  const auto range = numbers_in(value_of(json, "point_cloud_range"));
  const auto size = numbers_in(value_of(json, "voxel_size"));
  const auto lowest = range.slice(0, 0, 3), limit = ((range.slice(0, 3) - lowest) / size).round();
  const auto largest = numbers_in(value_of(json, "largest")).item<float>();
  const auto index = ((points.slice(1, 0, 3) - lowest) / size).floor();
  const auto is_inside = (points.abs() <= largest).all(1) & (index >= 0).all(1) & (index < limit).all(1);
  const auto column = index.masked_fill(~is_inside.unsqueeze(1), 0).to(torch::kLong).unbind(1);
  const auto shape = limit.to(torch::kLong);
  return ((column[2] * shape[1] + column[1]) * shape[0] + column[0]).masked_fill(~is_inside, -1);
}

// the rows that a package of static shapes asks for
torch::Tensor fit(const std::string& json, const torch::Tensor& points) {
  const std::string room = value_of(json, "num_points");
  if (room == "null") return points;
  const int64_t rows = std::stoll(room);
  auto inside = points.index({voxels_of(json, points) >= 0});
  if (inside.size(0) > rows) {
    if (value_of(json, "overflow") != "\"drop\"")
      throw std::runtime_error("the frame has " + std::to_string(inside.size(0)) +
                               " points in range and the package room for " + room);
    const auto distance = inside.slice(1, 0, 2).square().sum(1);
    inside = inside.index_select(0, distance.argsort().slice(0, 0, rows));
  }
  auto padded = torch::full({rows, points.size(1)}, NAN);
  padded.slice(0, 0, inside.size(0)).copy_(inside);
  return padded;
}

// the voxels of a frame are counted before anything is computed
void check_capacity(const std::string& json, const torch::Tensor& points) {
  const std::string capacity = value_of(json, "capacity");
  if (capacity == "null" || value_of(json, "overflow") == "\"drop\"") return;
  const auto voxel = voxels_of(json, points);
  const int64_t voxels = std::get<0>(at::_unique(voxel.index({voxel >= 0}))).numel();
  if (voxels > std::stoll(capacity))
    throw std::runtime_error("the frame has " + std::to_string(voxels) + " voxels and the package a capacity of " + capacity);
}

void detect(const std::string& package, const std::string& file) {
  using torch::inductor::AOTIModelPackageLoader;
  if (!std::ifstream(package)) throw std::runtime_error("there is no package " + package);
  auto metadata = AOTIModelPackageLoader::load_metadata_from_package(package, "model");
  const std::string json = metadata["stratified3d"];
  check_package(json, package);
  const std::string device = names_in(value_of(json, "device")).at(0);
  const std::vector<std::string> classes = names_in(value_of(json, "classes"));
  const auto points = fit(json, read_points(file));
  check_capacity(json, points);

  AOTIModelPackageLoader program(package);
  std::vector<torch::Tensor> inputs{points.to(torch::Device(device))};
  std::vector<torch::Tensor> outputs = program.run(inputs);

  const auto boxes = outputs[0].cpu(), scores = outputs[1].cpu(), labels = outputs[2].cpu();
  if (outputs[3].item<int64_t>() < 0) throw std::runtime_error("NMS of this frame takes more rounds than the package has");
  for (int64_t i = 0; i < outputs[3].item<int64_t>(); ++i) {
    std::printf("%s %.6f", classes.at(labels[i].item<int64_t>()).c_str(), scores[i].item<float>());
    for (int64_t k = 0; k < boxes.size(1); ++k) std::printf(" %.5f", boxes[i][k].item<float>());
    std::printf("\n");
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) {
    std::fprintf(stderr, "usage: detect PACKAGE.pt2 POINTS.bin\n");
    return 2;
  }
  try {
    torch::NoGradGuard no_grad;
    detect(argv[1], argv[2]);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "detect: %s\n", error.what());
    return 1;
  }
  return 0;
}
