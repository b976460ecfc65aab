import builtins
import collections
import copyreg
import os
import pickle
import random
import subprocess
import time
import tracemalloc

import numpy as np
import pytest

from hf_ssl.data import PlainPickleError, load_plain_pickle, plain_pickle


PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)

PLAIN = [
    None,
    {"imlist": ["a", "ü"], "gnd": [{"bbx": [1.5, 2.0, 3, 4], "easy": [0, 1]}, {}]},
    [True, False, -5, 2**63 - 1, -(2**63), -0.25, "", "text", b"", b"ab\xff\x00", 1 - 2j],
    ((), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4)),
    ({"a"}, set(), frozenset([b"b"]), {"a": 2, b"k": 4}),
    list(range(3000)),
]

ARRAYS = [
    np.arange(6).reshape(2, 3),
    np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    np.arange(24, dtype=np.uint8).reshape(2, 3, 4).transpose(1, 0, 2),
    np.arange(10)[::3],
    np.arange(3, dtype=">i4"),
    np.array(7, dtype=np.float16),
    np.array([]),
    np.zeros((0, 3)),
    np.array([True, False]),
    np.array(["ab", "c"]),
    np.array([b"ab", b"c"]),
    np.array([1 + 2j], dtype=np.complex64),
]

SCALARS = [np.int64(-3), np.float32(1.5), np.bool(True), np.str_("ab"), np.bytes_(b"ab"), np.uint8(200)]


@pytest.fixture
def load(tmp_path):
    def load_bytes(data):
        path = tmp_path / "some.pkl"
        path.write_bytes(data)
        return load_plain_pickle(path)

    return load_bytes


class Calls:
    """Is pickled as a call."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


# What is loaded


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_plain_data(load, protocol):
    for value in PLAIN:
        loaded = load(pickle.dumps(value, protocol))
        assert loaded == value and repr(loaded) == repr(value)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_arrays(load, protocol):
    for array in ARRAYS:
        data = pickle.dumps([array, array], protocol)
        first, second = load(data)
        reference = pickle.loads(data)[0]
        assert type(first) is np.ndarray and first is second
        assert first.dtype == reference.dtype and first.shape == array.shape
        np.testing.assert_array_equal(first, array)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_array_scalars(load, protocol):
    for scalar in SCALARS:
        loaded = load(pickle.dumps({"value": scalar}, protocol))["value"]
        assert type(loaded) is type(scalar) and loaded == scalar


@pytest.mark.parametrize("module", ["numpy.core", "numpy._core"])
def test_arrays_of_old_and_new_numpy(load, module):
    data = pickle.dumps(np.arange(3), protocol=2)
    assert b"numpy._core" in data
    assert load(data.replace(b"numpy._core", module.encode())).tolist() == [0, 1, 2]


def test_python_2(load):
    # As Python 2.7 writes {'x': ['caf\xe9', u'caf\xe9'], 'y': numpy.array([1, 2, 258], '<i4')} and 3L.
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\nq\x01cnumpy\nndarray\nq\x02K\x00\x85U\x01b\x87Rq\x03(K\x01K\x03\x85"
        b"cnumpy\ndtype\nq\x04U\x02i4K\x00K\x01\x87Rq\x05(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89"
        b"U\x0c\x01\x00\x00\x00\x02\x00\x00\x00\x02\x01\x00\x00tb"
    )
    data = b"\x80\x02}q\x00(U\x01x](U\x04caf\xe9X\x05\x00\x00\x00caf\xc3\xa9eU\x01y" + array + b"U\x01zL3L\nu."
    loaded = load(data)
    assert loaded["x"] == ["café", "café"] and loaded["z"] == 3
    assert loaded["y"].tolist() == [1, 2, 258] and loaded["y"].dtype == np.int32
    assert load(b"(dp0\nS'imlist'\np1\n(lp2\nS'a'\naVb\nasS'flag'\nI01\ns.") == {"imlist": ["a", "b"], "flag": True}


def test_what_is_shared_or_cyclic_stays_so(load):
    shared = [1]
    cyclic = {"a": shared, "b": [shared]}
    cyclic["self"] = cyclic
    loaded = load(pickle.dumps(cyclic))
    assert loaded["a"] is loaded["b"][0] and loaded["self"] is loaded


def test_marks_and_pops(load):
    # POP and POP_MARK as a pickler uses them for a tuple that holds itself.
    cyclic = ([],)
    cyclic[0].append(cyclic)
    for protocol in PROTOCOLS:
        loaded = load(pickle.dumps(cyclic, protocol))
        assert loaded[0][0] is loaded
    assert load(b"(K\x01(0K\x022l.") == [1, 2, 2]


# What is refused


def malicious_pickles(sentinel):
    """Each would create the file, or do other harm: {name: (pickle, what the error names)}."""
    touch = f"open({str(sentinel)!r}, 'w').close()"
    shell = f"touch {sentinel}"
    line = shell.encode()

    def unicode(text):
        return b"X" + len(text).to_bytes(4, "little") + text.encode()

    def stack_global(module, name, rest):
        return b"\x80\x04" + unicode(module) + unicode(name) + b"\x93" + rest

    system = f"{os.system.__module__}.system"
    numpy_array = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tU\x01btR"
    object_type = b"cnumpy\ndtype\n(U\x02O8K\x00K\x01tR"
    code = 0x7F
    return {
        "os.system": (pickle.dumps(Calls(os.system, shell)), system),
        "nested": (pickle.dumps({"gnd": [{"easy": (1, Calls(os.system, shell))}]}, 2), system),
        "as a key": (pickle.dumps({Calls(os.system, shell): 1}), system),
        "eval": (pickle.dumps(Calls(eval, touch)), "builtins.eval"),
        "exec of Python 2": (pickle.dumps(Calls(exec, touch), 2), "__builtin__.exec"),
        "import": (pickle.dumps(Calls(__import__, "os")), "builtins.__import__"),
        "getattr chain": (
            pickle.dumps(Calls(getattr, Calls(__import__, "os"), "system")),
            "builtins.getattr",
        ),
        "Popen": (pickle.dumps(Calls(subprocess.Popen, ["touch", str(sentinel)])), "subprocess.Popen"),
        "open": (pickle.dumps(Calls(open, str(sentinel), "w")), "open"),
        "runstring of numpy": (
            b"cnumpy.testing._private.utils\nrunstring\n(" + unicode(touch) + b"}tR.",
            "numpy.testing._private.utils.runstring",
        ),
        "numpy.load": (b"cnumpy\nload\n(" + unicode(str(sentinel)) + b"tR.", "numpy.load"),
        "numpy.memmap": (b"cnumpy\nmemmap\n(" + unicode(str(sentinel)) + b"tR.", "numpy.memmap"),
        "f2py": (b"cnumpy.f2py.crackfortran\nmyeval\n(" + unicode(touch) + b"tR.", "numpy.f2py.crackfortran.myeval"),
        "pickle.loads": (pickle.dumps(Calls(pickle.loads, pickle.dumps(Calls(os.system, shell)))), "_pickle.loads"),
        "dotted name": (
            stack_global("numpy.core", "multiarray._reconstruct.__globals__", b"."),
            "numpy.core.multiarray._reconstruct.__globals__",
        ),
        "dotted name of an allowed function": (
            stack_global("numpy.core.multiarray", "_reconstruct.__call__", b")R."),
            "_reconstruct.__call__",
        ),
        "dotted module": (b"cnumpy\nos.system\n(" + unicode(shell) + b"tR.", "numpy.os.system"),
        "INST": (b"(S'" + line + b"'\nios\nsystem\n.", "INST with 'os system'"),
        "OBJ": (b"(cos\nsystem\nS'" + line + b"'\no.", "os.system"),
        "OBJ of an allowed name": (b"(cnumpy\nndarray\nK\x05o.", "the operation OBJ"),
        "NEWOBJ": (b"\x80\x02cnumpy\nndarray\nK\x05\x85\x81.", "the operation NEWOBJ"),
        "NEWOBJ_EX": (b"\x80\x04cnumpy\nndarray\nK\x05\x85}\x92.", "the operation NEWOBJ_EX"),
        "persistent id": (b"Psome_id\n.", "PERSID with 'some_id'"),
        "binary persistent id": (b"K\x05Q.", "BINPERSID"),
        "extension": (b"\x80\x02\x82" + bytes([code]) + unicode(shell) + b"\x85R.", "EXT1 with 127"),
        "buffer from outside": (b"\x80\x05\x97\x98.", "NEXT_BUFFER"),
        "attributes of a function": (b"c_codecs\nencode\n}X\x01\x00\x00\x00aK\x01sb.", "in the place of a ndarray"),
        "slots of a class": (b"cnumpy\ndtype\nN}X\x04\x00\x00\x00codeK\x01s\x86b.", "in the place of a ndarray"),
        "attributes of a list": (b"]}X\x01\x00\x00\x00aK\x01sb.", "in the place of a ndarray"),
        "call of a list": (b"])R.", "in the place of a _Function"),
        "call of ndarray": (b"cnumpy\nndarray\n(K\x05tR.", "numpy.ndarray"),
        "array subclass": (pickle.dumps(np.ma.masked_array([1, 2])), "numpy.ma"),
        "array of a function": (
            b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\ndtype\n(K\x00tU\x01btR.",
            "a numpy array of another class",
        ),
        "array of objects": (pickle.dumps(np.array(["a", None], dtype=object)), "'O8'"),
        "addresses as objects": (
            numpy_array + b"(K\x01(K\x01t" + object_type + b"I00\nU\x08AAAAAAAAtb.",
            "'O8'",
        ),
        "object in a structure": (
            b"cnumpy\ndtype\n(U\x02V8K\x00K\x01tR(K\x03U\x01|N(U\x01ft}U\x01f("
            + object_type + b"K\x00tsK\x08K\x01K\x00tb.",
            "'V8'",
        ),
        "parts of a number": (
            b"cnumpy\ndtype\n(U\x02i8K\x00K\x01tR(K\x03U\x01<N(U\x01ft}K\x08K\x01K\x00tb.",
            "'i8' with parts",
        ),
        "a type of Python": (b"cnumpy\ndtype\n(]tR.", "the numpy type a list"),
        "other encoding": (b"c_codecs\nencode\n(" + unicode("abc") + unicode("zlib") + b"tR.", "'zlib'"),
        "bytearray of a size": (pickle.dumps(Calls(bytearray, 10**12)), "builtins.bytearray"),
        "bytes of a size": (pickle.dumps(Calls(bytes, 10**12)), "takes 0 positional arguments"),
        "other containers": (pickle.dumps(collections.OrderedDict(a=1)), "collections.OrderedDict"),
        "reconstructor": (pickle.dumps(Calls(copyreg._reconstructor, object, object, None)), "copyreg._reconstructor"),
        "function as data": (b"]c_codecs\nencode\na.", "a function or a type as data"),
        "type as data": (pickle.dumps([(np.dtype("i8"),)]), "a function or a type as data"),
    }  # fmt: skip


MALICIOUS = list(malicious_pickles("sentinel"))


@pytest.mark.parametrize("name", MALICIOUS)
def test_malicious_pickles_have_no_effect(load, tmp_path, name):
    sentinel = tmp_path / "sentinel"
    data, named = malicious_pickles(sentinel)[name]
    copyreg.add_extension(os.system.__module__, "system", 0x7F)
    try:
        with pytest.raises(PlainPickleError) as caught:
            load(data)
    finally:
        copyreg.remove_extension(os.system.__module__, "system", 0x7F)
    time.sleep(0.05 if name == "Popen" else 0)
    assert not sentinel.exists()
    message = str(caught.value)
    assert message.startswith(f"Cannot read {str(tmp_path / 'some.pkl')!r}: ") and len(message) < 600
    assert named in message
    assert "get the file from a source you trust" in message or message.endswith("Get the file again.")


@pytest.mark.parametrize("name", ["os.system", "nested", "runstring of numpy", "INST", "OBJ", "pickle.loads"])
def test_the_same_pickles_do_harm_elsewhere(tmp_path, name):
    sentinel = tmp_path / "sentinel"
    pickle.loads(malicious_pickles(sentinel)[name][0])
    assert sentinel.exists()


def test_nothing_is_changed_by_what_was_refused(load):
    functions = {name: dict(vars(function)) for name, function in plain_pickle._FUNCTIONS.items()}
    for data, _ in malicious_pickles("/nowhere/sentinel").values():
        with pytest.raises(PlainPickleError):
            load(data)
    assert {name: dict(vars(function)) for name, function in plain_pickle._FUNCTIONS.items()} == functions
    assert not hasattr(builtins.set, "a") and load(pickle.dumps(np.arange(2), 2)).tolist() == [0, 1]


def with_large_claims():
    array = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tU\x01btR"
    float64 = b"cnumpy\ndtype\n(U\x02f8K\x00K\x01tR(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    large = b"\x8a\x06" + (10**12).to_bytes(6, "little")
    text = b"X\x00\x00\x10\x00" + b"a" * 2**20 + b"q\x00"
    encode = b"c_codecs\nencode\nq\x01(h\x00"
    from_buffer = b"cnumpy.core.numeric\n_frombuffer\nq\x01(h\x00" + float64 + b"(J\x00\x00\x02\x00tU\x01Ct"
    items = b"".join(b"U\x04%04d" % i for i in range(2**12))
    return {
        "shape of an array": array + b"(K\x01(" + large + b"t" + float64 + b"I00\nU\x08AAAAAAAAtb.",
        "shape of strings": array + b"(K\x01(" + large + b"U\x01at" + float64 + b"I00\nU\x08AAAAAAAAtb.",
        "negative shape": array + b"(K\x01(J\xff\xff\xff\xffJ\xff\xff\xff\xfft" + float64 + b"I00\nU\x08AAAAAAAAtb.",
        "first shape": b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(" + large + b"tU\x01btR(K\x01tb.",
        "buffer": b"cnumpy.core.numeric\n_frombuffer\n(U\x08" + b"A" * 8 + float64 + b"(" + large + b"tU\x01CtR.",
        "bytes": b"\x80\x04\x8e" + (2**40).to_bytes(8, "little") + b"abc.",
        "bytearray": b"\x80\x05\x96" + (2**40).to_bytes(8, "little") + b"abc.",
        "string": b"T\xff\xff\xff\x7fabc.",
        "long": b"\x8b\xff\xff\xff\x7fabc.",
        "frame": b"\x80\x04\x95" + (2**60).to_bytes(8, "little") + b"]",
        "copies of a string": b"(" + text + encode + b"U\x06latin1t" + b"q\x02Rh\x01h\x02" * 2000 + b"Rl.",
        "copies of an array": b"(" + text + from_buffer + b"q\x02Rh\x01h\x02" * 1000 + b"Rl.",
        "copies of a set": b"(](" + items + b"e\x85q\x02" + b"c__builtin__\nset\nh\x02R" * 500 + b"l.",
    }  # fmt: skip


@pytest.mark.parametrize("name", with_large_claims())
def test_claimed_sizes_take_no_memory(load, name):
    data = with_large_claims()[name]
    tracemalloc.start()
    try:
        with pytest.raises(PlainPickleError, match="many copies of the same data" if "copies" in name else "damaged"):
            load(data)
        assert tracemalloc.get_traced_memory()[1] < 40e6
    finally:
        tracemalloc.stop()


def test_large_place_in_the_memo_takes_no_memory(load):
    assert load(b"\x80\x02]r\xff\xff\xff\xff.") == []


def test_nested_data_does_not_overflow_the_stack(load):
    # Python's own reader may end with a segmentation fault on the first one.
    deep = b"\x80\x02)" + b"\x85" * 200_000
    with pytest.raises(PlainPickleError, match="a key or a member of a set is a tuple, not a string or bytes"):
        load(b"\x80\x02}" + deep[2:] + b"K\x01s.")
    with pytest.raises(PlainPickleError, match="a key or a member of a set is a tuple"):
        load(b"\x80\x04\x8f(" + deep[2:] + b"\x90.")
    with pytest.raises(PlainPickleError, match="a key or a member of a set is a frozenset"):
        load(b"\x80\x04((\x91\x91.")
    value = load(deep + b".")
    for _ in range(200_000):
        (value,) = value
    assert value == ()


def test_many_references_take_no_time(load):
    # A list of two references to a list of two references … to 2**200 lists.
    value = load(b"]" + b"q\x00]h\x00ah\x00a" * 200 + b".")
    for _ in range(200):
        assert value[0] is value[1]
        value = value[0]
    # In the place of a name, too.
    with pytest.raises(PlainPickleError, match="not a string"):
        load(b"\x80\x04]" + b"q\x00]h\x00ah\x00a" * 200 + b"q\x00h\x00\x93.")
    with pytest.raises(PlainPickleError, match="the encoding a list"):
        load(b"c_codecs\nencode\n(X\x01\x00\x00\x00a(]" + b"q\x00]h\x00ah\x00a" * 200 + b"q\x001h\x00tR.")


def long_integer(number):
    return b"\x8a\x0a" + number.to_bytes(10, "little", signed=True)


@pytest.mark.parametrize("number", [2**63, -(2**63) - 1, 2**61 * 5])
def test_integers_beyond_64_bits(load, number):
    for data in [b"](" + long_integer(number) + b"e.", b"I%d\n." % number, b"L%dL\n." % number]:
        with pytest.raises(PlainPickleError, match="it has an integer of more than the 64 bits allowed"):
            load(data)


def test_keys_and_members_have_hashes_that_are_not_known_in_advance(load):
    # Multiples of this number have the same hash, 0, and floats have few.
    same_hash = [(2**61 - 1) * i for i in (1, 2, 3)]
    assert {hash(number) for number in same_hash} == {0}
    values = [*same_hash, 2.0**61, 1, True, None, (1, 2), ("a",), 1 + 2j, np.int64(1), np.float32(1)]
    for value in values:
        for container in ({value: "a"}, {"b", value}, frozenset([value])):
            for protocol in PROTOCOLS:
                with pytest.raises(PlainPickleError, match=f"is a {type(value).__name__}, not a string or bytes"):
                    load(pickle.dumps(container, protocol))
    for text in ("a", b"b", np.str_("c"), np.bytes_(b"d")):
        assert load(pickle.dumps([{text: 1}, {text}])) == [{text: 1}, {text}]


def test_places_in_the_memo_of_one_hash_take_no_time(load):
    places = b"".join(b"p%d\n" % ((2**61 - 1) * i) for i in range(20_000))
    start = time.perf_counter()
    assert load(b"]" + places + b".") == []
    assert time.perf_counter() - start < 3


def test_calls_do_not_copy_long_arguments(load):
    # One long tuple, that many calls are given: its copies would take minutes.
    long = b"(K\x03U\x01<NNN" + b"N" * 200_000 + b"tq\x00"
    with pytest.raises(PlainPickleError, match="a call without a tuple of few arguments"):
        load(b"cnumpy\ndtype\nq\x01" + long + b"R.")
    many = b"cnumpy\ndtype\n(U\x02i4K\x00K\x01tR" + long + b"0" + b"h\x00b" * 20_000 + b"0N."
    start = time.perf_counter()
    assert load(many) is None
    assert time.perf_counter() - start < 3


@pytest.mark.parametrize(
    "data, reason",
    [
        (b"", "pickle exhausted before seeing STOP"),
        (b"imlist: [a, b]\n", "no newline found"),
        (b"\x89PNG\r\n\x1a\n", "NEWFALSE|PERSID"),
        (b"PK\x03\x04 a zip file\n", "PERSID"),
        (b"{}", "unknown"),
        (pickle.dumps([1, "abc", {"a": 2.5}])[:-1], "pickle exhausted"),
        (pickle.dumps(list(range(1000)))[:700], "pickle exhausted|not enough data|expected"),
        (b".", "IndexError"),
        (b"h\x05.", "KeyError"),
        (b"e.", "IndexError"),
        (b"K\x01\x86.", "IndexError"),
        (b"}U\x01a]s.", None),
        (b"}]K\x01s.", "a key or a member of a set is a list"),
        (b"}(U\x01au.", "shorter"),
        (b"K\x01K\x02a.", "a int in the place of a list"),
        (b"c_codecs\nencode\n]R.", "a call without a tuple"),
        (b"c_codecs\nencode\n(K\x01U\x06latin1tR.", "AttributeError"),
        (b"c_codecs\nencode\n(X\x03\x00\x00\x00\xe2\x82\xacU\x06latin1tR.", "UnicodeEncodeError"),
        (b"cnumpy\ndtype\n(U\x02i3tR.", "TypeError"),
        (b"c__builtin__\ncomplex\n(U\x011K\x01tR.", "a complex number is not made of two numbers"),
        (b"c__builtin__\ncomplex\n(" + b"K\x01" * 10 + b"tR.", "a call without a tuple of few arguments"),
        (b"I" + b"9" * 10_000 + b"\n.", "ValueError"),
    ],
)
def test_damaged_files(load, data, reason):
    if reason is None:
        assert load(data) == {"a": []}
        return
    with pytest.raises(PlainPickleError, match=reason) as caught:
        load(data)
    assert "some.pkl'" in str(caught.value) and len(str(caught.value)) < 600


@pytest.mark.filterwarnings("ignore:invalid escape sequence")
def test_any_damage_is_an_error_of_one_kind(load):
    values = [PLAIN, ARRAYS[0], SCALARS[1], {"gnd": [np.arange(5), {"a": {"b", "c"}}]}]
    valid = [pickle.dumps(value, protocol) for value in values for protocol in PROTOCOLS]
    rng = random.Random(0)
    num_errors = 0
    for _ in range(600):
        data = bytearray(rng.choice(valid)[:4000])
        for _ in range(rng.randint(0, 4)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        del data[rng.randint(0, 2 * len(data)) :]
        try:
            load(bytes(data))
        except PlainPickleError:
            num_errors += 1
    assert 200 < num_errors < 600


def test_large_files_are_not_read(load, monkeypatch):
    monkeypatch.setattr(plain_pickle, "MAX_BYTES", 2**20)
    assert load(pickle.dumps("a" * (2**20 - 100))) == "a" * (2**20 - 100)
    with pytest.raises(PlainPickleError, match="more than the 1 MiB allowed .* Check that it is the right file"):
        load(pickle.dumps("a" * 2**20))


def test_many_operations_are_not_carried_out(load, monkeypatch):
    # Each byte makes a set of 200 bytes.
    assert plain_pickle.MAX_BYTES <= 4 * 2**20 and plain_pickle.MAX_OPERATIONS <= 2 * 10**6
    monkeypatch.setattr(plain_pickle, "MAX_OPERATIONS", 5000)
    assert load(b"\x8f" * 4999 + b".") == set()
    with pytest.raises(PlainPickleError, match="more than the 5,000 operations allowed .* Check that it is the right"):
        load(b"\x8f" * 5000 + b".")


def test_files_that_cannot_be_opened(tmp_path):
    with pytest.raises(FileNotFoundError, match="missing.pkl"):
        load_plain_pickle(tmp_path / "missing.pkl")
    with pytest.raises(IsADirectoryError):
        load_plain_pickle(str(tmp_path))
    assert issubclass(PlainPickleError, ValueError)
