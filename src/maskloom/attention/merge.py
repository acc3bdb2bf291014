import torch


def with_sinks(out, lse, sinks):
    s = sinks[:, None].to(lse.dtype)
    return out * torch.sigmoid(lse - s)[..., None].to(out.dtype), torch.logaddexp(lse, s)
