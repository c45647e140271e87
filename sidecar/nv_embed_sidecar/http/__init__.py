"""NVIDIA's and OpenAI's embeddings API over HTTP, beside gRPC and through the same intake."""
