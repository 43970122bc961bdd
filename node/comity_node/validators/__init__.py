"""ONNX-accelerated validators and checks that score what peers produce."""
