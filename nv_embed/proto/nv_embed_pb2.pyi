from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class InputType(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    INPUT_TYPE_UNSPECIFIED: _ClassVar[InputType]
    INPUT_TYPE_PASSAGE: _ClassVar[InputType]
    INPUT_TYPE_QUERY: _ClassVar[InputType]

class Truncate(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    TRUNCATE_UNSPECIFIED: _ClassVar[Truncate]
    TRUNCATE_NONE: _ClassVar[Truncate]
    TRUNCATE_START: _ClassVar[Truncate]
    TRUNCATE_END: _ClassVar[Truncate]

class Priority(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    PRIORITY_UNSPECIFIED: _ClassVar[Priority]
    PRIORITY_BULK: _ClassVar[Priority]
    PRIORITY_INTERACTIVE: _ClassVar[Priority]
INPUT_TYPE_UNSPECIFIED: InputType
INPUT_TYPE_PASSAGE: InputType
INPUT_TYPE_QUERY: InputType
TRUNCATE_UNSPECIFIED: Truncate
TRUNCATE_NONE: Truncate
TRUNCATE_START: Truncate
TRUNCATE_END: Truncate
PRIORITY_UNSPECIFIED: Priority
PRIORITY_BULK: Priority
PRIORITY_INTERACTIVE: Priority

class EmbedRequest(_message.Message):
    __slots__ = ("texts", "dim", "input_type", "model", "revision", "truncate", "priority")
    TEXTS_FIELD_NUMBER: _ClassVar[int]
    DIM_FIELD_NUMBER: _ClassVar[int]
    INPUT_TYPE_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    TRUNCATE_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    texts: _containers.RepeatedScalarFieldContainer[str]
    dim: int
    input_type: InputType
    model: str
    revision: str
    truncate: Truncate
    priority: Priority
    def __init__(self, texts: _Optional[_Iterable[str]] = ..., dim: _Optional[int] = ..., input_type: _Optional[_Union[InputType, str]] = ..., model: _Optional[str] = ..., revision: _Optional[str] = ..., truncate: _Optional[_Union[Truncate, str]] = ..., priority: _Optional[_Union[Priority, str]] = ...) -> None: ...

class EmbedResponse(_message.Message):
    __slots__ = ("vectors", "dim", "model", "revision", "tokens")
    VECTORS_FIELD_NUMBER: _ClassVar[int]
    DIM_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    vectors: bytes
    dim: int
    model: str
    revision: str
    tokens: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, vectors: _Optional[bytes] = ..., dim: _Optional[int] = ..., model: _Optional[str] = ..., revision: _Optional[str] = ..., tokens: _Optional[_Iterable[int]] = ...) -> None: ...

class TokenizeRequest(_message.Message):
    __slots__ = ("texts", "input_type", "model")
    TEXTS_FIELD_NUMBER: _ClassVar[int]
    INPUT_TYPE_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    texts: _containers.RepeatedScalarFieldContainer[str]
    input_type: InputType
    model: str
    def __init__(self, texts: _Optional[_Iterable[str]] = ..., input_type: _Optional[_Union[InputType, str]] = ..., model: _Optional[str] = ...) -> None: ...

class TokenizeResponse(_message.Message):
    __slots__ = ("tokens", "model", "revision")
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    tokens: _containers.RepeatedScalarFieldContainer[int]
    model: str
    revision: str
    def __init__(self, tokens: _Optional[_Iterable[int]] = ..., model: _Optional[str] = ..., revision: _Optional[str] = ...) -> None: ...

class ChunkRequest(_message.Message):
    __slots__ = ("text", "max_tokens", "overlap", "model")
    TEXT_FIELD_NUMBER: _ClassVar[int]
    MAX_TOKENS_FIELD_NUMBER: _ClassVar[int]
    OVERLAP_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    text: str
    max_tokens: int
    overlap: int
    model: str
    def __init__(self, text: _Optional[str] = ..., max_tokens: _Optional[int] = ..., overlap: _Optional[int] = ..., model: _Optional[str] = ...) -> None: ...

class Chunk(_message.Message):
    __slots__ = ("start_char", "end_char", "tokens")
    START_CHAR_FIELD_NUMBER: _ClassVar[int]
    END_CHAR_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    start_char: int
    end_char: int
    tokens: int
    def __init__(self, start_char: _Optional[int] = ..., end_char: _Optional[int] = ..., tokens: _Optional[int] = ...) -> None: ...

class ChunkResponse(_message.Message):
    __slots__ = ("chunks", "model", "revision")
    CHUNKS_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    chunks: _containers.RepeatedCompositeFieldContainer[Chunk]
    model: str
    revision: str
    def __init__(self, chunks: _Optional[_Iterable[_Union[Chunk, _Mapping]]] = ..., model: _Optional[str] = ..., revision: _Optional[str] = ...) -> None: ...

class ListModelsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Model(_message.Message):
    __slots__ = ("name", "revision", "native_dim", "trained_dims", "declared_dims", "max_tokens", "pooling", "query_prompt", "passage_prompt", "device", "precision")
    NAME_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    NATIVE_DIM_FIELD_NUMBER: _ClassVar[int]
    TRAINED_DIMS_FIELD_NUMBER: _ClassVar[int]
    DECLARED_DIMS_FIELD_NUMBER: _ClassVar[int]
    MAX_TOKENS_FIELD_NUMBER: _ClassVar[int]
    POOLING_FIELD_NUMBER: _ClassVar[int]
    QUERY_PROMPT_FIELD_NUMBER: _ClassVar[int]
    PASSAGE_PROMPT_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    PRECISION_FIELD_NUMBER: _ClassVar[int]
    name: str
    revision: str
    native_dim: int
    trained_dims: _containers.RepeatedScalarFieldContainer[int]
    declared_dims: _containers.RepeatedScalarFieldContainer[int]
    max_tokens: int
    pooling: str
    query_prompt: str
    passage_prompt: str
    device: str
    precision: str
    def __init__(self, name: _Optional[str] = ..., revision: _Optional[str] = ..., native_dim: _Optional[int] = ..., trained_dims: _Optional[_Iterable[int]] = ..., declared_dims: _Optional[_Iterable[int]] = ..., max_tokens: _Optional[int] = ..., pooling: _Optional[str] = ..., query_prompt: _Optional[str] = ..., passage_prompt: _Optional[str] = ..., device: _Optional[str] = ..., precision: _Optional[str] = ...) -> None: ...

class ListModelsResponse(_message.Message):
    __slots__ = ("models",)
    MODELS_FIELD_NUMBER: _ClassVar[int]
    models: _containers.RepeatedCompositeFieldContainer[Model]
    def __init__(self, models: _Optional[_Iterable[_Union[Model, _Mapping]]] = ...) -> None: ...
