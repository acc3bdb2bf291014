import torch.nn.functional as F

from maskloom.attention.compiled import shares_heads
from maskloom.attention.given import as_table


def sdpa(query, key, value, mask, *, scale):
    return F.scaled_dot_product_attention(
        query, key, value, attn_mask=as_table(query, key, mask), scale=scale, enable_gqa=shares_heads(query, key)
    )
