"""Token heads: a camera's feature map (B, D, h, w) -> one vector (B, F), for `theia_diffusion`; each says its F as
`feature_dim`. `compressed` is what they and `theia_act` have in common."""

import math

import torch
from einops import rearrange
from lerobot.policies.diffusion.modeling_diffusion import SpatialSoftmax
from torch import Tensor, nn


class TokenHead(nn.Module):
    """(B, D, h, w) -> (B, feature_dim)"""

    feature_dim: int


class SpatialSoftmaxHead(TokenHead):
    """Expected image positions of K learned features, as LeRobot's diffusion policy takes from its ResNet."""

    def __init__(self, map_shape: tuple[int, int, int], num_keypoints: int) -> None:
        super().__init__()
        if map_shape[1:] == (1, 1):
            raise ValueError(
                "token_head=spatial_softmax finds positions, and a 1x1 grid (token_pool=14) has none; use mean or attention"
            )
        self.feature_dim = 2 * num_keypoints
        self.pool = SpatialSoftmax(map_shape, num_kp=num_keypoints)
        self.out = nn.Linear(self.feature_dim, self.feature_dim)

    def forward(self, maps: Tensor) -> Tensor:
        keypoints = self.pool(maps).flatten(1)  # (B, 2 K)
        return torch.relu(self.out(keypoints))


class CompressionHead(TokenHead):
    """The convolutional compression layers that Theia's paper puts before a policy (arXiv 2407.20179, appendix D;
    with the layer norms its authors use): 14x14 -> 7x7 -> 3x3 -> 1x1, 256 channels.
    """

    feature_dim = 256

    def __init__(self, map_shape: tuple[int, int, int]) -> None:
        super().__init__()
        width = self.feature_dim
        self.layers = nn.Sequential(
            *compressed(map_shape, width),
            nn.Conv2d(width, width, kernel_size=3),
            nn.LayerNorm([width, 1, 1]),
            nn.ReLU(),
            nn.Flatten(),
        )

    def forward(self, maps: Tensor) -> Tensor:
        return self.layers(maps)


def compressed(map_shape: tuple[int, int, int], width: int) -> list[nn.Module]:
    """The first two of three: (B, D, 14, 14) -> (B, width, 3, 3). Raises ValueError for another grid."""
    dim, *grid = map_shape
    if grid != [14, 14]:
        raise ValueError(
            f"token_head=compression takes the 14x14 grid, got {grid[0]}x{grid[1]}; use --policy.token_pool=1 or "
            "another head"
        )
    return [
        nn.Conv2d(dim, width, kernel_size=4, stride=2, padding=1),
        nn.LayerNorm([width, 7, 7]),
        nn.ReLU(),
        nn.Conv2d(width, width, kernel_size=3, stride=2),
        nn.LayerNorm([width, 3, 3]),
        nn.ReLU(),
    ]


class AttentionHead(TokenHead):
    """One learned query attends to the tokens, which carry learned positions.

    That is `norm(attention(query, x, x))` of x = project(tokens) + position. There being one query, products are taken in
    the order that costs least, with the same result: the query goes through the keys' matrix to the tokens, H vectors of D
    in place of N keys, and values are made of H averages in place of N tokens. For N = 196, D = 192, F = 256 and H = 8 it is
    1.5 million multiplications a frame in place of 35 million, and gradients likewise.
    """

    NUM_HEADS = 8

    def __init__(self, map_shape: tuple[int, int, int], feature_dim: int) -> None:
        super().__init__()
        dim, height, width = map_shape
        if feature_dim % self.NUM_HEADS:
            raise ValueError(
                f"token_head_dim={feature_dim} is not a multiple of the {self.NUM_HEADS} attention heads"
            )
        self.feature_dim = feature_dim
        self.project = nn.Linear(dim, feature_dim)
        self.position = nn.Parameter(0.02 * torch.randn(height * width, feature_dim))
        self.query = nn.Parameter(0.02 * torch.randn(1, 1, feature_dim))
        self.attention = nn.MultiheadAttention(feature_dim, self.NUM_HEADS, batch_first=True)
        self.norm = nn.LayerNorm(feature_dim)

    def forward(self, maps: Tensor) -> Tensor:
        tokens = maps.flatten(2).transpose(1, 2)  # (B, N, D)
        of_query, of_keys, of_values = self.attention.in_proj_weight.chunk(3)  # (F, F) each
        # Keys' bias adds the same to all scores of a head, which softmax does not see.
        query_bias, _, value_bias = self.attention.in_proj_bias.chunk(3)
        query = torch.addmv(query_bias, of_query, self.query.flatten())  # (F,)
        # (H, F): what each head asks of x
        per_head = rearrange(query[:, None] * of_keys, "(h c) f -> h c f", h=self.NUM_HEADS).sum(1)
        per_head = per_head / math.sqrt(self.feature_dim // self.NUM_HEADS)
        scores = tokens @ (per_head @ self.project.weight).T + self.position @ per_head.T  # (B, N, H)
        weights = scores.softmax(dim=1).transpose(1, 2)  # (B, H, N)
        seen = self.project(weights @ tokens) + weights @ self.position  # (B, H, F), as weights add up to 1
        values = torch.einsum(
            "bhf,hcf->bhc", seen, rearrange(of_values, "(h c) f -> h c f", h=self.NUM_HEADS)
        )
        return self.norm(self.attention.out_proj(values.flatten(1) + value_bias))


class FlattenHead(TokenHead):
    """All tokens, each at its place, projected. For a pooled grid: it has D h w weights for each feature."""

    def __init__(self, map_shape: tuple[int, int, int], feature_dim: int) -> None:
        super().__init__()
        self.feature_dim = feature_dim
        self.out = nn.Linear(math.prod(map_shape), feature_dim)

    def forward(self, maps: Tensor) -> Tensor:
        return torch.relu(self.out(maps.flatten(1)))


class MeanHead(FlattenHead):
    """The average token, projected. Knows what is in view; where, only as far as each token says so itself."""

    def __init__(self, map_shape: tuple[int, int, int], feature_dim: int) -> None:
        super().__init__((map_shape[0], 1, 1), feature_dim)

    def forward(self, maps: Tensor) -> Tensor:
        return super().forward(maps.mean((-2, -1), keepdim=True))


def make_token_head(
    name: str, map_shape: tuple[int, int, int], *, num_keypoints: int, feature_dim: int
) -> TokenHead:
    """`map_shape` is (D, h, w); `num_keypoints` is for spatial softmax, `feature_dim` for attention, flatten and mean."""
    if name == "spatial_softmax":
        return SpatialSoftmaxHead(map_shape, num_keypoints)
    if name == "compression":
        return CompressionHead(map_shape)
    if name == "attention":
        return AttentionHead(map_shape, feature_dim)
    if name == "flatten":
        return FlattenHead(map_shape, feature_dim)
    if name == "mean":
        return MeanHead(map_shape, feature_dim)
    raise ValueError(f"token head {name!r} is not known")
