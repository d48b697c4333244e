"""The coordinator: state and API. Picks are computed by the sampler, rounds trained by the trainers."""
